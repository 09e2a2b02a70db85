"""Real workers, really killed."""

import os
import re
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from distributed import get_worker
from prefect import flow, task
from prefect.client.orchestration import SyncPrefectClient

from flows.prefect_api.failures import can_heal
from flows.running.fan_out import fan_out
from flows.workers import task_runner as task_runner_module
from flows.workers.local import LocalWorkers, local_workers
from flows.workers.on_worker import last_words
from flows.workers.task_runner import N_COMPUTING
from mlfilter_core.config.execution import LocalSettings
from mlfilter_core.errors import SourceError
from mlfilter_core.work.progress import Progress, ProgressTeller
from tests.conftest import within
from tests.flows.dask_workers import Items, last_task_runs, outcomes

N_ITEMS = 16


def note(folder: Path, item: str) -> int:
    """Records one execution of an item; returns the number of executions so far."""
    (folder / f"{item}.{os.getpid()}.{len(list(folder.iterdir()))}").touch()
    return len(list(folder.glob(f"{item}.*")))


def executions(folder: Path) -> dict[str, int]:
    names = [path.name.partition(".")[0] for path in folder.iterdir()]
    return {name: names.count(name) for name in sorted(set(names))}


def test_every_item_runs_once_and_gives_its_result(workers: LocalWorkers, tmp_path: Path) -> None:
    @task
    def work(item: str, folder: Path) -> str:
        note(folder, item)
        return item.upper()

    items = [f"item{i}" for i in range(12)]
    done = outcomes(workers, work, items, folder=tmp_path)
    assert {name: outcome.result for name, outcome in done.items()} == {item: item.upper() for item in items}
    assert executions(tmp_path) == dict.fromkeys(sorted(items), 1)


def test_the_number_of_workers_is_told(workers: LocalWorkers) -> None:
    @task
    def work(item: str) -> str:
        return item

    told: list[int] = []

    @flow(name="fan-out", validate_parameters=False)
    def run() -> None:
        list(fan_out(workers, work, Items(["one", "two"]), {}, told.append))

    run()
    assert set(told) == {2}


def test_an_item_whose_worker_dies_runs_again_and_finished_ones_do_not(workers: LocalWorkers, tmp_path: Path) -> None:
    @task
    def work(item: str, folder: Path) -> str:
        if note(folder, item) == 1 and item == "fatal":
            os.kill(os.getpid(), signal.SIGKILL)
        return item

    items = ["one", "two", "three", "four", "fatal", "five"]
    done = outcomes(workers, work, items, folder=tmp_path)
    assert {name: outcome.result for name, outcome in done.items()} == {item: item for item in items}
    runs = executions(tmp_path)
    assert runs["fatal"] == 2
    assert [runs[name] for name in ("one", "two", "three")] == [1, 1, 1]


def test_items_run_again_when_the_connection_to_the_scheduler_is_lost(
    workers: LocalWorkers, tmp_path: Path, client: SyncPrefectClient
) -> None:
    """As on a machine whose cores are taken: Dask then forgets what it was asked for."""

    noted, was_cut = tmp_path / "noted", tmp_path / "cut"
    noted.mkdir()

    @task
    def work(item: str, folder: Path, cut: Path) -> str:
        if note(folder, item) == 1:
            within(60, cut.exists)
        return item.upper()

    def cut() -> None:
        within(60, lambda: len(list(noted.iterdir())) == 2)
        dask_client = workers.runner.client
        dask_client.loop.add_callback(lambda: (dask_client.scheduler_comm.comm.abort(), was_cut.touch()))

    cutting = threading.Thread(target=cut)
    cutting.start()
    done = outcomes(workers, work, ["one", "two", "three"], folder=noted, cut=was_cut)
    cutting.join()
    assert {name: outcome.result for name, outcome in done.items()} == {"one": "ONE", "two": "TWO", "three": "THREE"}
    # Threads submit the items, so that any of the three may have waited at the scheduler.
    assert sorted(executions(noted).values()) == [1, 2, 2]
    assert {run.state_type for run in last_task_runs(client, 3)} == {"COMPLETED"}


def test_a_few_of_many_tasks_compute_at_a_time(workers: LocalWorkers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of threads that wait for Python's lock would keep it from Dask's scheduler."""
    run, now, most = task_runner_module.run_task_sync, [0], [0]

    def counted(**arguments: Any) -> Any:
        now[0] += 1
        most[0] = max(most[0], now[0])
        time.sleep(0.05)
        now[0] -= 1
        return run(**arguments)

    @task
    def work(item: int) -> int:
        return item

    @flow(name="many", validate_parameters=False)
    def many() -> list[int]:
        futures = [workers.runner.submit(work, {"item": i}) for i in range(5 * N_COMPUTING)]
        return [future.result() for future in futures]

    monkeypatch.setattr(task_runner_module, "run_task_sync", counted)
    assert many() == list(range(5 * N_COMPUTING))
    assert 1 < most[0] <= N_COMPUTING


@pytest.mark.parametrize("n_before_a_pause", [3, 4, 5, 16])
def test_an_item_that_waits_is_not_killed_along(workers: LocalWorkers, tmp_path: Path, n_before_a_pause: int) -> None:
    """The next task waits at the scheduler: with few tasks in total, Dask would assign it to a worker early.

    In a pause all tasks have ended, and Dask would forget that there were any.
    """
    scheduler = workers.runner.client.cluster.scheduler
    done, most = threading.Event(), [0]

    class Pausing(Items):
        def take(self, n_workers: int) -> str:
            if len(self) == N_ITEMS - n_before_a_pause:
                groups = [group for name, group in scheduler.task_groups.items() if name == "rest"]
                within(
                    60, lambda: not any(group.states[state] for group in groups for state in ("processing", "memory"))
                )
            return super().take(n_workers)

    def look() -> None:
        while not done.wait(0.01):
            most.append(max(len(state.processing) for state in scheduler.workers.values()))

    @task
    def rest(item: str, folder: Path) -> str:
        time.sleep(0.2)
        return item

    @flow(name="fan-out", validate_parameters=False)
    def run() -> int:
        items = Pausing([f"item{i}" for i in range(N_ITEMS)])
        return len(list(fan_out(workers, rest, items, {"folder": tmp_path})))

    looking = threading.Thread(target=look)
    looking.start()
    try:
        assert run() == N_ITEMS
    finally:
        done.set()
        looking.join()
    assert max(most) == 1


def test_items_that_kill_every_worker_are_marked_crashed_and_the_others_go_on(
    workers: LocalWorkers, tmp_path: Path, client: SyncPrefectClient
) -> None:
    @task
    def work(item: str, folder: Path) -> str:
        if item.startswith("poison"):
            os.kill(os.getpid(), signal.SIGKILL)
        return item

    # The workers die for longer than Dask's lost-worker-timeout, after which Dask would restart none.
    poison = [f"poison{i}" for i in range(5)]
    done = outcomes(workers, work, ["one", *poison, "two"], folder=tmp_path)
    assert done["one"].result == "one"
    assert done["two"].result == "two"
    for item in poison:
        assert "its worker died while running it, 4 times, last on 127.0.0.1; it was killed from" in str(
            done[item].error
        )
    states = [run.state_type for run in last_task_runs(client, 7)]
    assert (states.count("CRASHED"), states.count("COMPLETED")) == (len(poison), 2)


def test_a_worker_that_crashes_leaves_its_last_words(workers: LocalWorkers, tmp_path: Path) -> None:
    @task
    def work(item: str) -> str:
        import ctypes

        ctypes.string_at(0)
        return item

    (outcome,) = outcomes(workers, work, ["one"]).values()
    message = str(outcome.error)
    assert re.search(r"its log .*/worker-.*\.log ends with:\nFatal Python error: Segmentation fault\n", message), (
        message
    )
    assert re.search(r'File ".*ctypes/__init__.py", line \d+ in string_at\n', message)


def test_a_worker_that_was_killed_from_outside_says_what_it_was_at(tmp_path: Path) -> None:
    for n, run in ((1, "a/b"), (2, "a/c")):
        lines = ["task run a/b begins", "old", f"task run {run} begins", *(f"line {i}" for i in range(30 * n))]
        (tmp_path / f"worker-a-{n}.log").write_text("\n".join(lines))
    assert last_words(tmp_path, "a/c") == (
        "it was killed from outside, for example by the kernel because memory ran out: no error is in its log "
        f"{tmp_path}/worker-a-2.log, which ends with:\nline 57\nline 58\nline 59"
    )
    assert last_words(tmp_path, "a/d") == "no worker had begun it; see the workers' logs"


def test_an_item_that_makes_progress_each_time_is_not_given_up(
    workers: LocalWorkers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dask gives up the task after each death; it is started more often than allowed without progress."""
    monkeypatch.setattr(workers.runner.client.cluster.scheduler, "allowed_failures", 0)
    monkeypatch.setattr(task_runner_module, "MAX_STARTS", 1)
    monkeypatch.setattr(task_runner_module, "LOOK_S", 0.1)
    monkeypatch.setattr(
        workers.runner, "on_progress", lambda _, progress: (tmp_path / f"heard.{progress.committed}").touch()
    )

    @task
    def work(item: str, folder: Path) -> str:
        n = note(folder, item)
        if n < 4:
            ProgressTeller().tell(Progress(item, committed=n))
            within(60, (folder / f"heard.{n}").exists)
            os.kill(os.getpid(), signal.SIGKILL)
        return item

    done = outcomes(workers, work, ["long"], folder=tmp_path)
    assert done["long"].result == "long"
    assert executions(tmp_path)["long"] == 4


def test_a_passing_error_of_the_file_system_is_tried_again_and_others_are_not(
    workers: LocalWorkers, tmp_path: Path
) -> None:
    @task(retries=2, retry_delay_seconds=0, retry_condition_fn=can_heal)
    def work(item: str, folder: Path) -> str:
        attempt = note(folder, item)
        if item == "passing" and attempt < 3:
            raise OSError(5, "Input/output error")
        if item == "lasting":
            raise PermissionError(13, "Permission denied")
        if item == "bad":
            raise SourceError("bad.jsonl:3: fix it")
        return item

    done = outcomes(workers, work, ["passing", "lasting", "bad"], folder=tmp_path)
    assert done["passing"].result == "passing"
    assert isinstance(done["lasting"].error, PermissionError)
    assert isinstance(done["bad"].error, SourceError)
    assert str(done["bad"].error) == "bad.jsonl:3: fix it"
    assert executions(tmp_path) == {"bad": 1, "lasting": 1, "passing": 3}


def test_a_worker_on_which_a_task_failed_is_told_where_it_succeeds_on_another(
    workers: LocalWorkers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    healed: list[tuple[str, str, str]] = []
    monkeypatch.setattr(workers.runner, "on_healed", lambda *told: healed.append(told))

    @task(retries=1, retry_delay_seconds=2, retry_condition_fn=can_heal, task_run_name="work on {item}")
    def work(item: str, folder: Path) -> str:
        if note(folder, item) == 1:
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGKILL)).start()  # not to be taken a second time
            raise OSError(5, "Input/output error")
        return get_worker().address

    done = outcomes(workers, work, ["one"], folder=tmp_path)
    ((failed, healthy, name),) = healed
    assert failed != healthy == done["one"].result
    assert name == "work on one"


def test_a_run_that_ends_early_cancels_what_is_under_way_and_what_waits_to_be_tried_again(
    tmp_path: Path, client: SyncPrefectClient
) -> None:
    @task(retries=3, retry_delay_seconds=2)
    def work(item: str, folder: Path) -> str:
        note(folder, item)
        if item == "again":
            raise OSError(5, "Input/output error")
        time.sleep(0.5 if item == "short" else 60)
        return item

    @flow(name="early", validate_parameters=False)
    def run() -> None:
        with local_workers(LocalSettings(workers=3), False, "auto", 100, tmp_path / "logs") as workers:
            for outcome in fan_out(workers, work, Items(["again", "long", "short"]), {"folder": tmp_path / "runs"}):
                assert outcome.item == "short"
                raise ValueError("no more")

    (tmp_path / "runs").mkdir()
    with pytest.raises(ValueError, match="no more"):
        run()
    states = [run.state_type for run in last_task_runs(client, 3)]
    assert sorted(map(str, states)) == ["StateType.CANCELLED", "StateType.CANCELLED", "StateType.COMPLETED"]
