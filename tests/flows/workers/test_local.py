import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from distributed import Client
from prefect import task

from flows.workers.local import THREAD_VARIABLES, local_workers, visible_gpus
from flows.workers.task_runner import WorkerTaskRunner
from mlfilter_core.compute.cores import usable_cores
from mlfilter_core.config.execution import LocalSettings
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
            children = [" ".join(child.cmdline()) for child in psutil.Process().children(recursive=True)]
            assert len([child for child in children if "prefect.server.api.server:create_app" in child]) == 1
    assert not (tmp_path / "dask").exists()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3,5"
    assert "OMP_NUM_THREADS" not in os.environ
