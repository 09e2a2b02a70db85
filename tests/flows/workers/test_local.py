import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from distributed import Client

from flows.workers.local import local_workers, n_cores, visible_gpus
from flows.workers.task_runner import WorkerTaskRunner
from mlfilter_core.config.execution import LocalSettings


def in_each_worker(runner: WorkerTaskRunner, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    return list(Client.run(runner.client, function, *arguments).values())


@pytest.mark.parametrize(
    ("visible", "devices"),
    [("", []), ("-1", []), ("0", ["0"]), ("0,3", ["0", "3"]), ("GPU-8f7a,MIG-1b2c", ["GPU-8f7a", "MIG-1b2c"])],
)
def test_gpus_are_those_that_are_visible(visible: str, devices: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert visible_gpus() == devices


@pytest.mark.parametrize(("device", "seen"), [("auto", ["3", "5"]), ("cuda:1", ["3,5", "3,5"])])
def test_each_worker_sees_a_gpu_of_its_own_unless_the_job_names_one(
    device: str, seen: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, spawned_workers: None
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    with local_workers(LocalSettings(workers=-1), False, device, 100, tmp_path) as workers:
        assert sorted(in_each_worker(workers.runner, os.getenv, "CUDA_VISIBLE_DEVICES")) == seen
    assert not (tmp_path / "dask").exists()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3,5"


def test_each_cluster_divides_the_cores_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spawned_workers: None
) -> None:
    """Dask leaves the first cluster's variables in this process, which would overrule the second's."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for n_workers in (1, n_cores()):
        with local_workers(LocalSettings(workers=n_workers), False, "auto", 100, tmp_path) as workers:
            n_threads = set(in_each_worker(workers.runner, os.getenv, "OMP_NUM_THREADS"))
        assert n_threads == {str(n_cores() // n_workers)}
        assert "OMP_NUM_THREADS" not in os.environ


def test_no_more_workers_than_tasks_are_started(tmp_path: Path) -> None:
    with local_workers(LocalSettings(workers=4), False, "auto", 1, tmp_path) as workers:
        assert len(in_each_worker(workers.runner, os.getpid)) == workers.tend(1) == 1
