"""Execution settings to a task runner with workers."""

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dask
from dask.system import CPU_COUNT
from distributed import LocalCluster, get_worker
from prefect_dask import DaskTaskRunner

from mlfilter_core.config import LocalSettings

# Of torch, NumPy and the tokenizers.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
# A worker starts in seconds. Without any for so long, tasks fail instead of waiting for ever.
NO_WORKERS_TIMEOUT = "10 minutes"
# For the workers' environment: their progress bars and comings and goings would fill the terminal.
QUIET = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "DASK_LOGGING__DISTRIBUTED": "warning"}


def n_gpus() -> int:
    """Returns how many CUDA devices this process may use, without loading torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([device for device in visible.split(",") if device.strip() not in ("", "-1")])
    return len(list(Path("/dev").glob("nvidia[0-9]*")))


def n_cores() -> int:
    """Returns how many cores this process may use, within its affinity and its container's limit."""
    return int(CPU_COUNT)


@contextmanager
def local_workers(
    settings: LocalSettings, default_workers: int, n_tasks: int, folder: Path
) -> Iterator[DaskTaskRunner]:
    """Starts worker processes on this machine.

    Each worker runs one task at a time: the encoder brings its own threads, and two tasks in one process
    would share one GPU and one interpreter lock. The cores are divided among the workers, unless the
    environment sets `OMP_NUM_THREADS` and its kin. Dask would otherwise hold every worker to one thread.

    Args:
        settings: `workers`, or -1 for the default.
        default_workers: Workers where the settings do not say.
        n_tasks: More workers than that are not started.
        folder: For Dask's own files, removed with the workers.
    """
    logging.getLogger("distributed").setLevel(logging.WARNING)
    n_workers = max(1, min(settings.workers if settings.workers > 0 else default_workers, n_tasks))
    n_threads = max(1, n_cores() // n_workers)
    environment = {
        **dict.fromkeys(THREAD_VARIABLES, str(n_threads)),
        **QUIET,
        "TORCHINDUCTOR_CACHE_DIR": str(folder.absolute() / "torchinductor"),
    }
    with (
        _environment(environment),
        dask.config.set(
            {
                # This and the cache would else leave folders in the system's folder for temporary files.
                "temporary-directory": str(folder.absolute()),
                # One task in a worker, none waiting beside it to be killed along with it.
                "distributed.scheduler.worker-saturation": 1.0,
                # A nanny restarts its worker for as long as the run lasts. Dask's 15 s would end the nanny for
                # good where the worker died before and, by chance, is restarting again at that very moment.
                "distributed.deploy.lost-worker-timeout": "52 weeks",
                "distributed.scheduler.no-workers-timeout": NO_WORKERS_TIMEOUT,
                "distributed.admin.low-level-log-length": 10,
            }
        ),
    ):
        runner = DaskTaskRunner(
            cluster_class=LocalCluster,
            cluster_kwargs={
                "n_workers": n_workers,
                "threads_per_worker": 1,
                "host": "127.0.0.1",
                "dashboard_address": "127.0.0.1:0",
                "local_directory": str(folder),
                # Memory is bounded by the core. Dask's limit would pause or kill workers below the machine's.
                "memory_limit": None,
            },
        )
        try:
            with runner:
                yield runner
        finally:
            shutil.rmtree(folder, ignore_errors=True)


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


def worker_device(device: str) -> str:
    """Returns the device that this worker's encoder uses: with several GPUs, one for each worker."""
    if device not in ("auto", "cuda") or n_gpus() < 2:
        return device
    return f"cuda:{int(get_worker().name) % n_gpus()}"
