"""Fields that a site forbids to the jobs on its machines."""

from typing import Any

import pytest

import mlfilter_core.job_kinds  # noqa: F401  (as in commands and flows: the classes of all jobs)
from mlfilter_core.config.embedding import EmbeddingJob
from mlfilter_core.config.job_files import load_job
from mlfilter_core.config.site_rules import REFUSED_FIELDS
from mlfilter_core.config.training import TrainingJob
from mlfilter_core.errors import ConfigError

PARAMS: dict[str, Any] = {"input_dir": "in", "output_dir": "out", "embedding_model": "org/model"}
SLURM = {"running_on_slurm": True, "slurm_settings": {"env_command": "module load cuda"}}
SCORING = {"regression_head_checkpoints": {"a": "a.pt"}, "output_keys": ["id"], "allow_mismatched_head": True}


@pytest.mark.parametrize("form", ["mapping", "job", "overrides"])
def test_a_field_that_the_site_refuses_is_named(monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    given: Any = {"params": {**PARAMS, "trust_remote_code": True}, **SLURM}
    overrides = {"params.trust_remote_code": True}
    job = EmbeddingJob(**given)
    monkeypatch.setenv(REFUSED_FIELDS, "trust_remote_code, env_command")
    arguments = {"mapping": (given,), "job": (job,), "overrides": ({"params": PARAMS}, overrides)}[form]
    names = ("" if form == "overrides" else r"slurm_settings\.env_command, ") + r"params\.trust_remote_code"
    config, *changes = arguments
    with pytest.raises(ConfigError, match=rf"^{names}: refused on this site, by the variable {REFUSED_FIELDS}"):
        load_job(config, EmbeddingJob, *changes)


def test_a_job_that_leaves_them_at_their_defaults_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(REFUSED_FIELDS, "trust_remote_code env_command")
    assert not load_job({"params": {**PARAMS, "trust_remote_code": False}}, EmbeddingJob).params.trust_remote_code


def test_fields_within_others_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(REFUSED_FIELDS, "allow_mismatched_head labels_path")
    with pytest.raises(ConfigError, match=r"^params\.annotate_inline\.allow_mismatched_head: refused"):
        load_job({"params": {**PARAMS, "annotate_inline": SCORING}}, EmbeddingJob)
    heads = {"a": {"labels_path": "labels.jsonl", "label_key": "x"}}
    training = {"embeddings_directory": "e", "output_dir": "o", "heads": heads}
    with pytest.raises(ConfigError, match=r"^params\.heads\.a\.labels_path: refused"):
        load_job({"params": training}, TrainingJob)


def test_a_rule_about_a_field_that_does_not_exist_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(REFUSED_FIELDS, "trust_remote_codes")
    with pytest.raises(
        ConfigError, match=r"names trust_remote_codes, which is no field .*; did you mean trust_remote_"
    ):
        load_job({"params": PARAMS}, EmbeddingJob)
