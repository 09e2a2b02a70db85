import os
from pathlib import Path

import pytest
from distributed import Client

from flows.cluster import local_workers, n_cores, n_gpus, worker_device
from mlfilter_core.config import LocalSettings


@pytest.mark.parametrize(("visible", "n"), [("", 0), ("-1", 0), ("0", 1), ("0,3", 2), ("GPU-8f7a,MIG-1b2c", 2)])
def test_gpus_are_those_that_are_visible(visible: str, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert n_gpus() == n


def test_each_worker_takes_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with local_workers(LocalSettings(workers=-1), 2, 100, tmp_path / "dask") as runner:
        workers = list(runner.client.scheduler_info(n_workers=-1)["workers"])
        for device, devices in (("auto", ["cuda:0", "cuda:1"]), ("cpu", ["cpu"] * 2), ("cuda:1", ["cuda:1"] * 2)):
            chosen = [
                Client.submit(runner.client, worker_device, device, workers=[worker], pure=False) for worker in workers
            ]
            assert sorted(future.result() for future in chosen) == devices
    assert not (tmp_path / "dask").exists()


def test_each_cluster_divides_the_cores_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dask leaves the first cluster's variables in this process, which would overrule the second's."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for n_workers in (1, n_cores()):
        with local_workers(LocalSettings(workers=n_workers), 1, 100, tmp_path / "dask") as runner:
            n_threads = set(runner.client.run(os.environ.get, "OMP_NUM_THREADS").values())
        assert n_threads == {str(n_cores() // n_workers)}
        assert "OMP_NUM_THREADS" not in os.environ


def test_no_more_workers_than_tasks_are_started(tmp_path: Path) -> None:
    with local_workers(LocalSettings(workers=4), 1, 1, tmp_path / "dask") as runner:
        assert len(runner.client.scheduler_info(n_workers=-1)["workers"]) == 1
