"""Commands that are stopped by signals, as Ctrl-C on a terminal, `timeout` and a closed terminal send them."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter

from flows.running.script import STOPPING
from flows.running.stopping import SIGNALS, stopped_by_signals
from tests.conftest import PATIENCE, within
from tests.flows.commands.processes import REPOSITORY, running_below, server_environment
from tests.flows.conftest import WriteJob

START_S = 120  # on a machine that is busy
END_S = 10  # promised where two cores are idle
TEXT = "Real words of a page on the web, as many of them as an encoder reads in some hundredths of a second. " * 8


@pytest.fixture
def long_job(embed_job: WriteJob, corpus: Path, tmp_path: Path) -> Path:
    """A job that takes minutes, and commits something every second."""
    lines = [json.dumps({"text": f"{i} {TEXT}"}) + "\n" for i in range(20_000)]
    (corpus / "long.jsonl").write_text("".join(lines))
    return embed_job(commit_documents=20, max_batch_tokens=512)


@pytest.fixture
def started() -> Iterator[list["subprocess.Popen[str]"]]:
    """Commands that end with the test."""
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        process.kill()
        with process:  # closes its pipes
            pass


def start(processes: list["subprocess.Popen[str]"], job: Path, **environment: str) -> "subprocess.Popen[str]":
    """Starts an embedding in a process group of its own, as a shell does."""
    process = subprocess.Popen(
        [sys.executable, "flows/embed.py", "--config", str(job)],
        cwd=REPOSITORY,
        env={**os.environ, "PREFECT_API_URL": "", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        process_group=0,
    )
    processes.append(process)
    return process


def stop(process: "subprocess.Popen[str]", number: signal.Signals, *, group: bool) -> tuple[str, set[int]]:
    """Sends a signal, waits, and returns what was printed, and the descendants that are left."""
    below = {child.pid for child in psutil.Process(process.pid).children(recursive=True)}
    stopped = time.monotonic()
    (os.killpg if group else os.kill)(process.pid, number)
    output, _ = process.communicate(timeout=PATIENCE * 60)
    assert time.monotonic() - stopped < PATIENCE * END_S
    return output, {pid for pid in below if psutil.pid_exists(pid)}


def checkpoint(job: Path) -> Path:
    return job.parent / "out/embeddings/.long.h5.committed"


def is_embedding(job: Path) -> bool:
    return checkpoint(job).exists()


@pytest.mark.parametrize("moment", ["reading", "starting", "embedding"])
def test_ctrl_c_ends_a_run_with_one_line(started: list[Any], long_job: Path, moment: str) -> None:
    process = start(started, long_job)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("embed: ")
    if moment == "starting":
        within(START_S, lambda: running_below(process.pid, "spawn_main"))
    if moment == "embedding":
        within(START_S, lambda: is_embedding(long_job))
    output, left = stop(process, signal.SIGINT, group=True)
    assert process.returncode == 130, output
    assert output.splitlines().count(STOPPING) == 1
    assert output.splitlines()[-1] == STOPPING
    assert "Traceback" not in output
    within(START_S, lambda: not any(map(psutil.pid_exists, left)))  # the guard ends after the run


def test_a_stopped_run_is_reported_and_the_same_command_continues(
    started: list[Any], long_job: Path, client: SyncPrefectClient
) -> None:
    process = start(started, long_job, **server_environment())
    within(START_S, lambda: is_embedding(long_job))
    within(START_S, lambda: checkpoint(long_job).stat().st_size > 5_000)
    output, _ = stop(process, signal.SIGTERM, group=False)
    assert process.returncode == 143, output
    assert "Traceback" not in output
    (record,) = (long_job.parent / "out/logs").glob("embed-*/run.json")
    facts = json.loads(record.read_text())
    assert facts["error"] == "Stopped: stopped by SIGTERM"
    name = record.parent.name.removeprefix("embed-")
    (run,) = client.read_flow_runs(flow_run_filter=FlowRunFilter.model_validate({"name": {"any_": [name]}}))
    assert run.state is not None and run.state.is_crashed()
    states = {task.state_type.value for task in client.read_task_runs(flow_run_filter=_only(run.id)) if task.state_type}
    assert "RUNNING" not in states
    size = checkpoint(long_job).stat().st_size
    again = start(started, long_job)
    within(START_S, lambda: checkpoint(long_job).stat().st_size > size)
    stop(again, signal.SIGINT, group=True)
    logs = "".join(log.read_text() for log in (long_job.parent / "out/logs").glob("embed-*/worker-*.log"))
    assert "is discarded" not in logs


def _only(run: UUID) -> FlowRunFilter:
    return FlowRunFilter.model_validate({"id": {"any_": [run]}})


SLOW = """
import signal, subprocess, sys, time
from flows.running import stopping
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup, under which the tests may run, has it ignored
stopping.ORDERLY_S = float(sys.argv[1])
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
guard = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
with stopping.stopped_by_signals("stopping"):
    while True:  # as a library that catches what is none of its business
        try:
            print(guard.pid, flush=True)
            time.sleep(600)
        except BaseException:
            pass
"""


@pytest.mark.parametrize(
    ("number", "orderly_s", "n_signals"), [(signal.SIGTERM, 1, 1), (signal.SIGINT, 600, 2), (signal.SIGHUP, 600, 2)]
)
def test_a_run_that_does_not_end_in_order_is_ended_with_all_its_processes_but_guards(
    started: list[Any], number: signal.Signals, orderly_s: float, n_signals: int
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, str(orderly_s)], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    started.append(process)
    assert process.stdout is not None
    guard = int(process.stdout.readline())
    below = [child for child in psutil.Process(process.pid).children() if child.pid != guard]
    for _ in range(n_signals):
        process.send_signal(number)
        time.sleep(0.3)
    assert process.wait(PATIENCE * 60) == 128 + number
    within(10, lambda: not any(child.is_running() for child in below))
    assert psutil.Process(guard).is_running()
    os.kill(guard, signal.SIGKILL)


def test_signals_are_as_before_after_a_command() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with stopped_by_signals("stopping"):
        assert [signal.getsignal(number) for number in SIGNALS] != before
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_a_run_that_nohup_started_outlives_its_terminal() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopped_by_signals("stopping"):
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.1)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


SERVER = "from flows.prefect_api import serve; serve.LINGER_S = 1; serve.main()"


def test_a_server_ends_after_the_process_that_started_it(tmp_path: Path) -> None:
    environment = {**os.environ, "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{tmp_path}/prefect.db"}
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(listening.fileno())],
            cwd=REPOSITORY,
            env=environment,
            pass_fds=[listening.fileno()],
            stdin=subprocess.PIPE,
        )
    time.sleep(2)
    assert server.poll() is None
    assert server.stdin is not None
    server.stdin.close()  # as the death of the process does
    assert server.wait(PATIENCE * 60) == 0
