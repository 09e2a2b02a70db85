"""Workers on this machine."""

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import dask
from dask.system import CPU_COUNT
from distributed import LocalCluster

from flows.workers.on_worker import GPUS_VARIABLE, PRELOAD
from flows.workers.task_runner import WorkerTaskRunner
from mlfilter_core.config.execution import LocalSettings

# Of torch, NumPy and the tokenizers.
THREAD_VARIABLES = (
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"),
    "TORCHINDUCTOR_COMPILE_THREADS",
)
# A worker starts in seconds. Without any for so long, tasks fail instead of waiting for ever.
NO_WORKERS_TIMEOUT = "10 minutes"
# Of Dask's scheduler and its nannies.
SCHEDULER_SETTINGS = {
    # One task in a worker, none waiting beside it to be killed along with it.
    "distributed.scheduler.worker-saturation": 1.0,
    # A nanny restarts its worker for as long as the run lasts. Dask's 15 s would end the nanny for good where
    # the worker died before and, by chance, is restarting again at that very moment.
    "distributed.deploy.lost-worker-timeout": "52 weeks",
    "distributed.admin.low-level-log-length": 10,
}
# For the workers' environment: their progress bars and comings and goings would fill the terminal.
QUIET = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "DASK_LOGGING__DISTRIBUTED": "warning"}


def visible_gpus() -> list[str]:
    """Returns the CUDA devices that this process may use, as in CUDA_VISIBLE_DEVICES, without loading torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [device.strip() for device in visible.split(",") if device.strip() not in ("", "-1")]
    return [str(i) for i in range(len(list(Path("/dev").glob("nvidia[0-9]*"))))]


def n_cores() -> int:
    """Returns how many cores this process may use, within its affinity and its container's limit."""
    return int(CPU_COUNT)


@dataclass(frozen=True)
class LocalWorkers:
    """Workers on this machine, which Dask starts again where they die."""

    runner: WorkerTaskRunner
    n_workers: int

    def tend(self, n_tasks: int) -> int:
        return self.n_workers


@contextmanager
def local_workers(
    settings: LocalSettings, one_per_core: bool, device: str, n_tasks: int, logs: Path
) -> Iterator[LocalWorkers]:
    """Starts worker processes on this machine.

    Each worker runs one task at a time: the encoder brings its own threads, and two tasks in one process
    would share one GPU and one interpreter lock. The cores are divided among the workers, unless the
    environment sets `OMP_NUM_THREADS` and its kin. Dask would otherwise hold every worker to one thread.

    Args:
        settings: `workers`, or -1 for the default.
        one_per_core: Whether the default is a worker for each core, or for each GPU (one, if there is none).
        device: Of the job: with `auto` or `cuda`, each worker gets a GPU of its own.
        n_tasks: More workers than that are not started.
        logs: Folder of the run's logs; `dask` in it is for Dask's own files, removed with the workers.
    """
    logging.getLogger("distributed").setLevel(logging.WARNING)
    default = n_cores() if one_per_core else max(1, len(visible_gpus()))
    n_workers = min(settings.workers if settings.workers > 0 else default, max(1, n_tasks))
    folder = logs / "dask"
    environment = worker_environment(n_cores() // n_workers, folder)
    environment["TORCHINDUCTOR_CACHE_DIR"] = str(folder.absolute() / "torchinductor")
    if shares_gpus(device):
        environment[GPUS_VARIABLE] = ",".join(visible_gpus())
    with (
        _environment(environment),
        dask.config.set(
            {
                **SCHEDULER_SETTINGS,
                # This and the cache would else leave folders in the system's folder for temporary files.
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
                # Memory is bounded by the core. Dask's limit would pause or kill workers below the machine's.
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
        n_threads: Of torch, NumPy and the tokenizers.
        folder: For what matplotlib keeps.
    """
    return {
        **dict.fromkeys(THREAD_VARIABLES, str(max(1, n_threads))),
        **QUIET,
        "MPLCONFIGDIR": str(folder.absolute() / "matplotlib"),
    }


def shares_gpus(device: str) -> bool:
    """Tells whether a job leaves it to us which worker uses which GPU."""
    return device in ("auto", "cuda")


@contextmanager
def _environment(defaults: dict[str, str]) -> Iterator[None]:
    """Sets environment variables for the workers, unless the user has set them.

    Dask's own setting for that, `pre-spawn-environ`, leaves them in this process, where they would overrule
    those of the next cluster.
    """
    unset = {name: value for name, value in defaults.items() if name not in os.environ}
    os.environ.update(unset)
    try:
        yield
    finally:
        for name in unset:
            os.environ.pop(name, None)
