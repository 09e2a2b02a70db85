"""Dask workers on this machine."""

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import dask
from distributed import LocalCluster

from flows.workers.on_worker import GPUS_VARIABLE, PRELOAD
from flows.workers.task_runner import WorkerTaskRunner
from mlfilter_core.compute.cores import usable_cores
from mlfilter_core.config.execution import LocalSettings

# Numbers of threads in torch, NumPy and the tokenizers.
THREAD_VARIABLES = (
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"),
    "TORCHINDUCTOR_COMPILE_THREADS",
)
# Without a worker for this long, tasks fail instead of waiting forever; a worker starts in seconds.
NO_WORKERS_TIMEOUT = "10 minutes"
# Settings of Dask's scheduler and nannies.
SCHEDULER_SETTINGS = {
    # A worker gets one task at a time: a second one would wait there, and be killed along with the first.
    "distributed.scheduler.worker-saturation": 1.0,
    # A nanny restarts its worker until the run ends. With Dask's default of 15 s, the nanny is removed if its
    # worker happens to be restarting again 15 s after an earlier death.
    "distributed.deploy.lost-worker-timeout": "52 weeks",
    "distributed.admin.low-level-log-length": 10,
}
# Workers' environment without messages that would fill the terminal: progress bars, connections.
QUIET = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "DASK_LOGGING__DISTRIBUTED": "warning"}


def visible_gpus() -> list[str]:
    """Returns the CUDA devices that this process may use, as in CUDA_VISIBLE_DEVICES; does not load torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [device.strip() for device in visible.split(",") if device.strip() not in ("", "-1")]
    return [str(i) for i in range(len(list(Path("/dev").glob("nvidia[0-9]*"))))]


@dataclass(frozen=True)
class LocalWorkers:
    """Workers on this machine, which Dask restarts when they die."""

    runner: WorkerTaskRunner
    n_workers: int

    def tend(self, n_tasks: int) -> int:
        return self.n_workers


@contextmanager
def local_workers(
    settings: LocalSettings, one_per_core: bool, device: str, n_tasks: int, logs: Path
) -> Iterator[LocalWorkers]:
    """Starts worker processes on this machine.

    Each worker runs one task at a time: the encoder has its own threads, and two tasks in one process would share
    one GPU and one interpreter lock. The cores are divided among the workers, unless the environment sets
    `OMP_NUM_THREADS` and similar variables. By default, Dask would limit each worker to one thread.

    Args:
        settings: Local settings of the job file; `workers: -1` is the default.
        one_per_core: Whether the default is one worker per core, or one per GPU (a single one without GPUs).
        device: Device of the job: with `auto` or `cuda`, each worker gets its own GPU.
        n_tasks: Number of tasks; no more workers than that are started.
        logs: Folder of the run's logs. Dask's own files go to `dask` in it, which is removed at the end.
    """
    logging.getLogger("distributed").setLevel(logging.WARNING)
    default = usable_cores() if one_per_core else max(1, len(visible_gpus()))
    n_workers = min(settings.workers if settings.workers > 0 else default, max(1, n_tasks))
    folder = logs / "dask"
    environment = worker_environment(usable_cores() // n_workers, folder)
    environment["TORCHINDUCTOR_CACHE_DIR"] = str(folder.absolute() / "torchinductor")
    if shares_gpus(device):
        environment[GPUS_VARIABLE] = ",".join(visible_gpus())
    with (
        _environment(environment),
        dask.config.set(
            {
                **SCHEDULER_SETTINGS,
                # Otherwise Dask and torch's cache would leave folders in the system's temporary folder.
                "temporary-directory": str(folder.absolute()),
                "distributed.scheduler.no-workers-timeout": NO_WORKERS_TIMEOUT,
            }
        ),
    ):
        runner = WorkerTaskRunner(
            logs,
            cluster_class=LocalCluster,
            cluster_kwargs={
                "n_workers": n_workers,
                "threads_per_worker": 1,
                "host": "127.0.0.1",
                "dashboard_address": "127.0.0.1:0",
                "local_directory": str(folder),
                "preload": [PRELOAD],
                # The core bounds its memory. Dask's limit would pause or kill workers while memory is left.
                "memory_limit": None,
            },
        )
        try:
            with runner:
                yield LocalWorkers(runner, n_workers)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def worker_environment(n_threads: int, folder: Path) -> dict[str, str]:
    """Returns environment variables for a worker.

    Args:
        n_threads: Number of threads in torch, NumPy and the tokenizers.
        folder: Folder for matplotlib's cache.
    """
    return {
        **dict.fromkeys(THREAD_VARIABLES, str(max(1, n_threads))),
        **QUIET,
        "MPLCONFIGDIR": str(folder.absolute() / "matplotlib"),
    }


def shares_gpus(device: str) -> bool:
    """Returns whether the job lets us choose a GPU for each worker."""
    return device in ("auto", "cuda")


@contextmanager
def _environment(defaults: dict[str, str]) -> Iterator[None]:
    """Sets environment variables for the workers, unless the user has set them.

    Dask's setting for this, `pre-spawn-environ`, leaves them in this process, where they would override those of the
    next cluster.
    """
    unset = {name: value for name, value in defaults.items() if name not in os.environ}
    os.environ.update(unset)
    try:
        yield
    finally:
        for name in unset:
            os.environ.pop(name, None)
