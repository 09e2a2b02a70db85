"""A Prefect server that dies, with or without a restart, or cannot write to its database."""

import os
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from flows.prefect_api.database import UP_TO_DATE, has_tables
from mlfilter_core.embedding_store.reader import EmbeddingFile
from tests.faults.campaign import IS_LONG
from tests.faults.conftest import END_S, MINILM, TEST_S, Disk, Run, leftovers, statuses, within, write_corpus

FILES = {"a": 30, "b": 60, "c": 30}
# Prefect's default, 5, is a minute for each request; 1 is some seconds.
RETRIES = {} if IS_LONG else {"PREFECT_CLIENT_MAX_RETRIES": "1"}
DOWN_S = 30 if IS_LONG else 5
pytestmark = pytest.mark.timeout(TEST_S)


class Server:
    """A Prefect server like that of a site, in a process that can be killed; its folder and port stay the same."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.api = f"http://127.0.0.1:{self._port}/api"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        variables = {"PREFECT_HOME": str(self.folder), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
        variables |= {"PREFECT_API_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{self.folder}/prefect.db"}
        if has_tables(self.folder / "prefect.db"):  # a copy: Prefect's migrations take seconds, and a site has run them
            variables |= UP_TO_DATE
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        line = ["prefect.server.api.server:create_app", "--factory", "--host", "127.0.0.1", "--port", str(self._port)]
        with open(self.folder / "server.log", "ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "uvicorn", *line, "--log-level", "warning"],
                env={**inherited, **variables, "DO_NOT_TRACK": "1"},
                stdout=log,
                stderr=log,
            )
        within(END_S, self.answers)

    def answers(self) -> bool:
        try:
            return httpx.get(f"{self.api}/health", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def states(self, of: str) -> list[str]:
        """Returns the states of all flow runs, or task runs."""
        answer = httpx.post(f"{self.api}/{of}/filter", json={}, timeout=60)
        answer.raise_for_status()
        return sorted(run["state_name"] for run in answer.json())


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    folder = tmp_path / "server"
    folder.mkdir()
    server = Server(folder)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """Three files that take MiniLM some seconds, one task each."""
    params = {
        "input_dir": str(write_corpus(tmp_path / "corpus", FILES)),
        "output_dir": str(tmp_path / "out"),
        "embedding_model": MINILM,
        "max_batch_tokens": 1024,
        "commit_documents": 10,
        "text_field": "text",
    }
    content = {"params": params, "local_settings": {"workers": 1}, "files_per_task": 1}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(content))
    return tmp_path / "job.yaml"


def check_outputs(out: Path) -> None:
    """Every file exists, is complete, and was embedded once."""
    for name, n in FILES.items():
        with EmbeddingFile(out / "embeddings" / f"{name}.h5", "train") as file:
            file.check_content()
            assert file.column("document_id", slice(0, None)) == [f"{name}-{i}" for i in range(n)]
    assert leftovers(out) == set()
    embedded = [name for name, status in statuses(out / "logs") if status == "embedded"]
    assert embedded == ["a.jsonl", "b.jsonl", "c.jsonl"]


def finished(out: Path, n: int) -> Callable[[], bool]:
    """Returns a check that `n` files are finished, whichever the worker took first."""
    return lambda: len(list(out.glob("embeddings/[!.]*.h5"))) >= n


def test_a_run_goes_on_while_the_server_is_gone_and_tells_its_state_when_it_is_back(
    server: Server, job: Path, start: Callable[..., Run], tmp_path: Path
) -> None:
    run = start("embed", job, PREFECT_API_URL=server.api)
    within(END_S, finished(tmp_path / "out", 1), run)
    server.kill()
    time.sleep(DOWN_S)
    server.start()
    assert run.ended() == 0, run.said
    check_outputs(tmp_path / "out")
    assert server.states("flow_runs") == ["Completed"]
    within(60, lambda: server.states("task_runs") == ["Completed"] * 3)


def test_a_server_that_never_comes_back_costs_a_run_nothing_but_its_record(
    server: Server, job: Path, start: Callable[..., Run], tmp_path: Path
) -> None:
    run = start("embed", job, PREFECT_API_URL=server.api, **RETRIES)
    within(END_S, finished(tmp_path / "out", 1), run)
    server.kill()
    within(END_S, finished(tmp_path / "out", len(FILES)), run)
    assert run.ended() == 0, run.said
    check_outputs(tmp_path / "out")
    assert f"the Prefect API at {server.api} was lost (ConnectError: " in run.said
    assert "embed: 3 files" in run.said  # the table
    server.start()
    again = start("embed", job, PREFECT_API_URL=server.api)
    assert again.ended() == 0, again.said
    check_outputs(tmp_path / "out")
    assert sorted(server.states("flow_runs")) == ["Completed", "Running"]  # nothing could report the end of the first


def test_a_database_that_is_locked_for_a_while_does_not_stop_a_run(
    server: Server, job: Path, start: Callable[..., Run], tmp_path: Path
) -> None:
    run = start("embed", job, PREFECT_API_URL=server.api)
    within(END_S, finished(tmp_path / "out", 1), run)
    database = sqlite3.connect(server.folder / "prefect.db", timeout=60, isolation_level=None)
    database.execute("BEGIN EXCLUSIVE")
    try:
        within(END_S, finished(tmp_path / "out", len(FILES)), run)
        time.sleep(30 if IS_LONG else 10)  # beyond the end of the work, when the run reports its final state
    finally:
        database.rollback()
        database.close()
    assert run.ended() == 0, run.said
    check_outputs(tmp_path / "out")
    assert server.states("flow_runs") == ["Completed"]
    within(60, lambda: server.states("task_runs") == ["Completed"] * 3)


def test_a_full_disk_ends_a_run_with_its_own_server_with_one_message(
    job: Path, start: Callable[..., Run], disk: Disk, tmp_path: Path
) -> None:
    """Its database is on the disk, the outputs are elsewhere."""
    content = yaml.safe_load(job.read_text())
    content["local_settings"]["logging_dir"] = str(disk.folder)
    job.write_text(yaml.safe_dump(content))
    small = start("embed", job, PREFECT_API_URL="")
    assert small.ended() == 1
    assert "are needed, and 8.39 MB are free. Make room there, or set logging_dir" in small.said
    assert len(small.said.splitlines()) == 2  # the first says what is done
    disk.remount("size=40m")
    run = start("embed", job, PREFECT_API_URL="")
    within(END_S, finished(tmp_path / "out", 1), run)
    disk.fill(0)
    assert run.ended() == 1, run.said
    assert "Traceback" not in run.said
    assert run.said.count("database or disk is full") == 1
    error = run.said.splitlines()[-1]
    assert error.startswith(f"error: Prefect's database in {disk.folder}/prefect/")
    assert "Make room there" in error
    disk.free()
    again = start("embed", job, PREFECT_API_URL="")
    assert again.ended() == 0, again.said
    for name, n in FILES.items():
        with EmbeddingFile(tmp_path / "out" / "embeddings" / f"{name}.h5", "train") as file:
            assert file.n_rows == n
