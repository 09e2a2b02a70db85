import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from flows.prefect_api.proxies import HERE, NO_PROXY, PROXIES, reach_this_machine_directly
from mlfilter_core.embedding_store.reader import EmbeddingFile
from tests.flows.commands.processes import REPOSITORY
from tests.flows.conftest import WriteJob

NOWHERE = "http://127.0.0.1:9"  # refuses at once, as a site's proxy does for the addresses of its users' machines


@pytest.fixture
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in (*PROXIES, *NO_PROXY):
        for variable in (name, name.upper()):
            monkeypatch.setenv(variable, "")  # so that the end of the test restores what the function sets
            monkeypatch.delenv(variable)
    return monkeypatch


def test_a_run_behind_a_proxy_that_does_not_know_this_machine(embed_job: WriteJob, tmp_path: Path) -> None:
    proxies = {name: NOWHERE for proxy in PROXIES[:2] for name in (proxy, proxy.upper())}
    environment = {**os.environ, "PREFECT_API_URL": "", **proxies, "ALL_PROXY": "socks5://127.0.0.1:9"}
    command = [sys.executable, "flows/embed.py", "--config", str(embed_job())]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "http://" not in done.stderr  # no link to a server that ends with the run
    assert done.stderr.count("warning: ALL_PROXY=socks5://127.0.0.1:9 is ignored") == 1
    with EmbeddingFile(tmp_path / "out/embeddings/a/x.h5", "train") as file:
        assert file.n_rows == 5


@pytest.mark.parametrize("own", ["", "intern.site", "127.0.0.1,intern.site"])
def test_hosts_that_a_site_reaches_directly_stay(own: str, no_proxies: pytest.MonkeyPatch) -> None:
    no_proxies.setenv("http_proxy", NOWHERE)
    no_proxies.setenv("NO_PROXY", own)
    reach_this_machine_directly()
    for name in NO_PROXY:
        direct = os.environ[name].split(",")
        assert {*HERE, *filter(None, own.split(","))} <= set(direct)
        assert len(direct) == len(set(direct))


def test_without_proxies_nothing_changes(no_proxies: pytest.MonkeyPatch) -> None:
    before = dict(os.environ)
    reach_this_machine_directly()
    assert dict(os.environ) == before


def test_httpx_needs_a_package_for_socks(no_proxies: pytest.MonkeyPatch) -> None:
    """If this fails, httpx no longer does, and the function need not drop such proxies."""
    no_proxies.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    with pytest.raises(ImportError, match="socksio"):
        httpx.Client()
    reach_this_machine_directly()
    httpx.Client().close()


def test_the_password_of_a_proxy_is_not_shown(
    no_proxies: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    no_proxies.setenv("all_proxy", "socks5://me:secret@proxy.site:1080")
    reach_this_machine_directly()
    assert "warning: all_proxy=socks5://proxy.site:1080 is ignored" in capsys.readouterr().err
