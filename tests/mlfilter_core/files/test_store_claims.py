import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from mlfilter_core.errors import ConfigError
from mlfilter_core.files import store_claims
from mlfilter_core.files.claims import machine
from mlfilter_core.files.store_claims import claimed_by_run
from mlfilter_core.files.stores import StoreFolder
from tests.conftest import within
from tests.s3_servers import moto_server, store

CLAIM = "bucket/run/.mlfilter/runs/0-0-of-1.json"


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[StoreFolder]:
    with moto_server(os.environ):
        store().mkdir("bucket")
        yield StoreFolder("s3://bucket/run", tmp_path)


def write_claim(made_on: str, process: int) -> None:
    facts = {"machine": made_on, "process": process, "host": "node7", "run": "other"}
    store().pipe_file(CLAIM, orjson.dumps(facts))


def test_the_claim_of_a_run_that_was_killed_here_is_taken_over(folder: StoreFolder) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    write_claim(machine(), ended.pid)
    with claimed_by_run(folder, range(1), 1):
        assert orjson.loads(store().cat_file(CLAIM))["process"] == os.getpid()
    assert not store().exists(CLAIM)


def test_the_claim_of_another_machine_holds_until_it_gives_no_sign(
    folder: StoreFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_claim("another", 1)
    with pytest.raises(ConfigError, match=r"another run, process 1 on node7, writes there; .* wait 10 min 0 s after"):
        with claimed_by_run(folder, range(1), 1):
            pytest.fail("not reached")
    monkeypatch.setattr(store_claims, "ABANDONED_S", -10)
    with claimed_by_run(folder, range(1), 1):
        assert orjson.loads(store().cat_file(CLAIM))["host"] == socket.gethostname()


def test_shards_run_side_by_side_unless_they_overlap(folder: StoreFolder) -> None:
    with claimed_by_run(folder, range(0, 2), 4), claimed_by_run(folder, range(2, 4), 4):
        for ranks, n_shards in ((range(1, 3), 4), (range(0, 1), 1)):
            with pytest.raises(ConfigError, match="another run"):
                with claimed_by_run(folder, ranks, n_shards):
                    pytest.fail("not reached")
    assert not store().exists("bucket/run/.mlfilter")


def test_a_living_run_renews_its_claim(folder: StoreFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_claims, "REFRESH_S", 0.05)
    runs = StoreFolder(folder.url_to(store_claims.RUNS), folder.mirror)
    writes: list[bytes] = []
    monkeypatch.setattr(StoreFolder, "write", lambda self, name, content: writes.append(content))
    with claimed_by_run(folder, range(1), 1):
        within(20, lambda: len(writes) >= 2)
        assert runs.read("0-0-of-1.json") == writes[0] == writes[1]
    assert runs.find("0-0-of-1.json") is None
