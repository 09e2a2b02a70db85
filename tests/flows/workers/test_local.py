import asyncio
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from distributed import Client, Security
from distributed.comm import connect
from prefect import task

from flows.prefect_api import serve
from flows.workers.local import THREAD_VARIABLES, local_workers, workers_ahead, workers_kept
from flows.workers.task_runner import WorkerTaskRunner
from flows.workers.worker_count import visible_gpus
from mlfilter_core.compute.cores import usable_cores
from mlfilter_core.config.execution import LocalSettings
from tests.conftest import within
from tests.flows.commands.processes import running_below
from tests.flows.dask_workers import outcomes


def in_each_worker(runner: WorkerTaskRunner, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    return list(Client.run(runner.client, function, *arguments).values())


@pytest.mark.parametrize(
    ("visible", "devices"),
    [("", []), ("-1", []), ("0", ["0"]), ("0,3", ["0", "3"]), ("GPU-8f7a,MIG-1b2c", ["GPU-8f7a", "MIG-1b2c"])],
)
def test_gpus_are_those_that_are_visible(visible: str, devices: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert visible_gpus() == devices


@task
def n_torch_threads(item: str) -> int:
    import torch

    return torch.get_num_threads()


@task
def process_id(item: str) -> int:
    return os.getpid()


@pytest.mark.parametrize(
    ("device", "n_workers", "n_tasks", "gpus"),
    [("auto", -1, 100, ["3", "5"]), ("cuda:1", 2, 100, ["3,5", "3,5"]), ("auto", 4, 1, ["3"])],
)
def test_workers_divide_the_cores_and_get_a_gpu_each_unless_the_job_names_one(
    device: str,
    n_workers: int,
    n_tasks: int,
    gpus: list[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    spawned_workers: None,
) -> None:
    """A second cluster in one process: Dask would leave the first one's variables here, which would override these."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    for variable in THREAD_VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    with local_workers(LocalSettings(workers=n_workers), False, device, n_tasks, tmp_path) as workers:
        assert sorted(in_each_worker(workers.runner, os.getenv, "CUDA_VISIBLE_DEVICES")) == gpus
        threads = in_each_worker(workers.runner, os.getenv, "OMP_NUM_THREADS")
        assert threads == [str(max(1, usable_cores() // len(gpus)))] * len(gpus)
        assert workers.tend(n_tasks) == len(gpus)
        if n_workers == -1:
            (done,) = outcomes(workers, n_torch_threads, ["one"]).values()
            assert done.result == max(1, usable_cores() // 2)
            assert len(running_below(os.getpid(), serve.__file__)) == 1
    assert not (tmp_path / "dask").exists()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3,5"
    assert "OMP_NUM_THREADS" not in os.environ


@pytest.mark.parametrize(("n_workers", "device"), [(1, "cpu"), (2, "cpu"), (1, "auto")])
def test_workers_that_were_started_ahead_are_taken_if_they_are_those_of_the_run(
    n_workers: int, device: str, fast_workers: None, tmp_path: Path
) -> None:
    ahead, environment = tmp_path / "ahead", dict(os.environ)
    with workers_ahead(1, "cpu", ahead, ["html.entities"]):
        settings = LocalSettings(workers=n_workers)
        with local_workers(settings, False, device, n_workers, tmp_path / "run") as workers:
            directories = workers.runner.client.run(lambda dask_worker: dask_worker.local_directory).values()
            assert len(directories) == n_workers
            are_taken = (n_workers, device) == (1, "cpu")
            assert all(Path(each).is_relative_to(ahead) == are_taken for each in directories)
            assert ahead.exists() == are_taken
        assert not ahead.exists()
    assert dict(os.environ) == environment


def test_rounds_share_their_workers_if_they_ask_for_as_many(fast_workers: None, tmp_path: Path) -> None:
    environment = dict(os.environ)
    pids: list[list[int]] = []
    with workers_ahead(1, "cpu", tmp_path / "ahead", []), workers_kept():
        for number, n_tasks in enumerate((1, 1, 2, 2)):
            logs = tmp_path / f"round{number}"
            with local_workers(LocalSettings(workers=2), False, "cpu", n_tasks, logs) as workers:
                assert [each.result for each in outcomes(workers, process_id, ["a"]).values()]
                pids.append(sorted(in_each_worker(workers.runner, os.getpid)))
            assert list(logs.glob("worker-*.log"))
    assert (pids[0], pids[2]) == (pids[1], pids[3])
    assert [len(each) for each in pids] == [1, 1, 2, 2]
    assert pids[0][0] not in pids[2]
    assert not any(psutil.pid_exists(pid) for each in pids for pid in each)
    assert not list(tmp_path.glob("*/dask"))
    assert dict(os.environ) == environment


def test_workers_of_a_round_that_failed_are_not_kept(fast_workers: None, tmp_path: Path) -> None:
    pids = []
    with workers_kept():
        for number in range(2):
            with (
                suppress(RuntimeError),
                local_workers(LocalSettings(workers=1), False, "cpu", 1, tmp_path / str(number)) as workers,
            ):
                pids += in_each_worker(workers.runner, os.getpid)
                raise RuntimeError
            assert not psutil.pid_exists(pids[-1])
    assert len(set(pids)) == 2


def test_a_worker_may_be_silent_for_as_long_as_a_file_server_may_be_away(fast_workers: None, tmp_path: Path) -> None:
    with local_workers(LocalSettings(workers=1), False, "cpu", 1, tmp_path) as workers:
        silent_s = workers.runner.client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.worker_ttl)
    assert silent_s >= 3600


def test_workers_ahead_that_no_run_takes_are_ended(spawned_workers: None, tmp_path: Path) -> None:
    before = running_below(os.getpid(), "spawn_main")
    with workers_ahead(1, "cpu", tmp_path / "ahead", []):
        within(60, lambda: len(running_below(os.getpid(), "spawn_main")) > len(before))
    assert not (tmp_path / "ahead").exists()
    assert running_below(os.getpid(), "spawn_main") == before


def test_workers_import_modules_while_they_start(spawned_workers: None, tmp_path: Path) -> None:
    def has_imported() -> bool:
        return "html.entities" in sys.modules and "xml.dom.minidom" in sys.modules

    with (
        workers_ahead(1, "cpu", tmp_path / "ahead", ["no_such_module", "html.entities", "xml.dom.minidom"]),
        local_workers(LocalSettings(workers=1), False, "cpu", 1, tmp_path / "run") as workers,
    ):
        assert within(30, lambda: all(workers.runner.client.run(has_imported).values()))


@pytest.mark.parametrize("has_other_keys", [False, True])
def test_only_processes_with_the_keys_of_the_run_reach_its_scheduler_workers_and_nannies(
    has_other_keys: bool, tmp_path: Path, spawned_workers: None
) -> None:
    """Other users of a login node can reach the ports, and would have their code run here."""
    security = Security.temporary() if has_other_keys else Security()
    with local_workers(LocalSettings(workers=1), False, "cpu", 1, tmp_path) as workers:
        (worker,) = workers.runner.client.scheduler_info()["workers"].items()
        addresses = [workers.runner.client.scheduler.address, worker[0], worker[1]["nanny"]]
        assert all(address.startswith("tls://") for address in addresses)
        for address in addresses:
            asyncio.run(_greet(address, workers.runner.client.security))
        for address in addresses:
            for protocol in ("tls", "tcp"):
                strange = f"{protocol}://{address.partition('://')[2]}"
                with pytest.raises((OSError, TypeError, RuntimeError)):
                    asyncio.run(_greet(strange, security))


async def _greet(address: str, security: Security) -> None:
    comm = await connect(address, timeout=1, **security.get_connection_args("client"))
    try:
        await comm.write({"op": "identity", "reply": True})
        await asyncio.wait_for(comm.read(), 1)
    finally:
        comm.abort()
