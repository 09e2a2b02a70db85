"""Which variables of the environment a job may read."""

import pytest
from omegaconf import OmegaConf

from mlfilter_core.config.embedding import EmbeddingJob
from mlfilter_core.config.environment import READABLE_VARIABLES, check_readable
from mlfilter_core.config.job_files import load_job
from mlfilter_core.errors import ConfigError

PARAMS = {"input_dir": "in", "output_dir": "out", "embedding_model": "org/model"}
SECRETS = [
    *("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN"),
    *("OPENAI_API_KEY", "APIKEY", "api_key", "PGPASSWORD", "MYSQL_PWD", "DB_PASS", "CLIENT_SECRETS"),
    *("GOOGLE_APPLICATION_CREDENTIALS", "AZURE_STORAGE_CONNECTION_STRING", "AZURE_STORAGE_SAS_TOKEN", "GITHUB_PAT"),
    *("PREFECT_API_AUTH_STRING", "SENTRY_DSN", "KEY_2", "TOKEN1", "SSH_KEY_PASSPHRASE", "SESSION_COOKIE"),
]
OTHERS = [
    *("MLFILTER_CORPUS", "HOME", "PATH", "PWD", "OLDPWD", "SLURM_JOB_ID", "USER", "TMPDIR", "HF_HOME"),
    *("MAX_TOKENS", "TOKENIZERS_PARALLELISM", "KEYBOARD", "INDEX_KEYS", "AUTHOR", "COMPASS", "PATTERN", "BYPASS_DIR"),
]


@pytest.mark.parametrize("name", SECRETS)
def test_a_variable_with_the_name_of_a_secret_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"^the variable {name} looks like a secret.*give it another name$"):
        check_readable(name)


@pytest.mark.parametrize("name", OTHERS)
def test_other_variables_may_be_read(name: str) -> None:
    check_readable(name)


@pytest.mark.parametrize("value", ["postgresql://me:s3cret@db/x", "https://hub.example/model?sig=s3cret"])
def test_a_variable_with_credentials_in_its_value_is_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("DATABASE", value)
    with pytest.raises(ConfigError, match="DATABASE looks like a secret") as refused:
        check_readable("DATABASE")
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize(
    "written",
    [
        *("${oc.env:HF_TOKEN}", "x${oc.env:HF_TOKEN,none}", "${oc.env:'HF_TOKEN'}", "${oc.env:${dataset_name}}"),
        *("${oc.decode:'${oc.env:HF_TOKEN}'}", "${oc.decode:'\\${oc.env:HF_TOKEN}'}", "${oc.env:HF_${oc.env:HALF}}"),
        "${oc.${hidden}:HF_TOKEN}",
    ],
)
def test_no_way_of_writing_it_reads_a_secret(monkeypatch: pytest.MonkeyPatch, written: str) -> None:
    for name, value in {"HF_TOKEN": "s3cret", "HALF": "TOKEN"}.items():
        monkeypatch.setenv(name, value)
    content = {"dataset_name": "HF_TOKEN", "params": {**PARAMS, "prompt": written}, "hidden": "env"}
    for overrides in (None, {"params.prompt": written}):
        with pytest.raises(ConfigError, match=r"^the job: params\.prompt: the variable HF_TOKEN looks") as refused:
            load_job(content, EmbeddingJob, overrides)
        assert "s3cret" not in str(refused.value)


def test_a_variable_that_is_not_set_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    content = {"params": {**PARAMS, "prompt": "${oc.env:MLFILTER_NOBODY_SETS_THIS}"}}
    message = (
        r"params\.prompt: the variable MLFILTER_NOBODY_SETS_THIS is not set; .*\$\{oc\.env:MLFILTER_NOBODY_SETS_THIS,"
    )
    with pytest.raises(ConfigError, match=message):
        load_job(content, EmbeddingJob)


def test_a_site_lists_the_variables_that_jobs_may_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(READABLE_VARIABLES, "MLFILTER_*, CORPUS TEXT_KEY")
    for name in ("MLFILTER_OUTPUT", "CORPUS", "TEXT_KEY"):
        check_readable(name)
    for name in ("HOME", "CORPUS_2", "HF_TOKEN", ""):
        with pytest.raises(ConfigError, match=f"^jobs may not read the variable {name} here; {READABLE_VARIABLES} is"):
            check_readable(name)
    monkeypatch.setenv(READABLE_VARIABLES, "")
    with pytest.raises(ConfigError, match="jobs may not read the variable CORPUS"):
        check_readable("CORPUS")


def test_other_users_of_omegaconf_read_what_they_like(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hers")
    with pytest.raises(ConfigError):
        load_job({"params": {**PARAMS, "prompt": "${oc.env:HF_TOKEN}"}}, EmbeddingJob)
    assert OmegaConf.create({"a": "${oc.env:HF_TOKEN}"}).a == "hers"
