"""Real workers, one of which is far slower than the others."""

import os
import socket
import time
from pathlib import Path

import pytest
from prefect import flow, task

from flows.running import takeover
from flows.running.fan_out import fan_out
from flows.running.takeover import TakingOver
from flows.watching import speeds
from flows.watching.run_progress import RunProgress
from flows.workers.local import local_workers
from mlfilter_core.config.execution import LocalSettings
from mlfilter_core.files.claims import claim
from mlfilter_core.files.task_files import TaskFile
from mlfilter_core.work.division import Tasks
from mlfilter_core.work.progress import Progress, ProgressTeller
from tests.flows.dask_workers import Items
from tests.flows.watching.reports import report

N_DOCUMENTS = 150


@task
def work(item: str, folder: Path, slow_s: float) -> int:
    """Does a document in 0.01 s, or in `slow_s` on the worker that first gets the slow file; returns where it began."""
    checkpoint, teller = folder / f"{item}.committed", ProgressTeller()
    with claim(folder / item):
        begin = int(checkpoint.read_text()) if checkpoint.exists() else 0
        is_slow = item == "slow" and not checkpoint.exists()
        (folder / f"{item}.{os.getpid()}.worker").touch()
        for n in range(begin, N_DOCUMENTS):
            time.sleep(slow_s if is_slow else 0.01)
            checkpoint.write_text(str(n))
            teller.tell(Progress(item, documents=n, committed=n, share=n / N_DOCUMENTS))
    return begin


@pytest.fixture
def run_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunProgress:
    """The progress of a run over three files; speeds are known after seconds instead of minutes."""
    for module, name, value in (
        *((speeds, "GRACE_S", 1), (speeds, "WINDOW_S", 2), (speeds, "MIN_SPAN_S", 1)),
        *((takeover, "START_S", 1), (takeover, "LOOK_S", 0.2)),
    ):
        monkeypatch.setattr(module, name, value)
    (tmp_path / "files").mkdir()
    for name in ("a", "b", "slow"):
        (tmp_path / "files" / name).touch()
    return RunProgress(3, Tasks([TaskFile(name, name, tmp_path / "files") for name in ("a", "b", "slow")]), 0)


def done(slow_s: float, progress: RunProgress, tmp_path: Path) -> dict[str, int]:
    """Runs the task over the files; returns for each at which document its last execution began."""

    @flow(name="takeover", validate_parameters=False)
    def run() -> dict[str, int]:
        began = {}
        with local_workers(LocalSettings(workers=3), False, "cpu", 3, tmp_path / "logs") as workers:
            workers.runner.on_progress = progress.hear
            taking_over = TakingOver(workers, progress.stragglers)
            items = Items(["a", "b", "slow"])
            for outcome in fan_out(taking_over, work, items, {"folder": tmp_path / "files", "slow_s": slow_s}):
                assert outcome.result is not None
                began[outcome.item] = outcome.result
                progress.finish(outcome.item, report(outcome.item))
        return began

    return run()


def test_the_file_of_a_worker_that_is_far_slower_is_taken_over_after_its_last_commit_and_its_node_is_named(
    run_progress: RunProgress, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    began = done(1, run_progress, tmp_path)  # alone, the slow worker would take minutes
    assert (began["a"], began["b"]) == (0, 0)
    assert began["slow"] > 0
    assert len(list((tmp_path / "files").glob("slow.*.worker"))) == 2
    warnings = [record.getMessage() for record in caplog.records if record.name == takeover.__name__]
    assert len(warnings) == 2
    node = socket.gethostname()
    assert warnings[0].startswith("slow: its worker is far slower than the others: ")
    assert f" documents/s on node {node} (worker-{node}-" in warnings[0]
    assert warnings[1].startswith(f"slow is taken from worker-{node}-")


def test_a_file_stays_with_a_slow_worker_that_would_be_done_before_another_and_the_log_says_so_once(
    run_progress: RunProgress, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(takeover, "START_S", 1000)
    assert done(0.1, run_progress, tmp_path) == {"a": 0, "b": 0, "slow": 0}
    assert len(list((tmp_path / "files").glob("slow.*.worker"))) == 1
    (warning,) = [record.getMessage() for record in caplog.records if record.name == takeover.__name__]
    assert warning.startswith("slow: its worker is far slower than the others: ")
