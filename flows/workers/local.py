"""Dask workers on this machine.

Imports no Prefect, so that workers start while Prefect is imported.
"""

import logging
import os
import shutil
import signal
import socket
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, replace
from multiprocessing import resource_tracker
from pathlib import Path
from typing import TYPE_CHECKING

import dask
from distributed import LocalCluster

from flows.workers.on_worker import GPUS_VARIABLE, IMPORTS_VARIABLE, PRELOAD
from flows.workers.open_files import allow_open_files
from flows.workers.worker_count import most_workers, visible_gpus
from mlfilter_core.compute.cores import usable_cores
from mlfilter_core.compute.memory import usable_memory_bytes
from mlfilter_core.config.execution import LocalSettings
from mlfilter_core.wording import plural, size

if TYPE_CHECKING:
    from flows.workers.task_runner import WorkerTaskRunner

_log = logging.getLogger(__name__)

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
    # HDF5 keeps Python's lock while it opens a file, so that a worker answers nobody until its file system does. With
    # Dask's default of 5 minutes, an NFS server that is away for long would cost workers, and then files.
    "distributed.scheduler.worker-ttl": "1 hour",
    "distributed.admin.low-level-log-length": 10,
}
# Workers' environment without messages that would fill the terminal: progress bars, connections.
QUIET = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "DASK_LOGGING__DISTRIBUTED": "warning"}


@dataclass(frozen=True)
class LocalWorkers:
    """Workers on this machine, which Dask restarts when they die."""

    runner: "WorkerTaskRunner"
    n_workers: int

    def tend(self, n_tasks: int) -> int:
        return self.n_workers

    def node_of(self, worker: str) -> str:
        return socket.gethostname()

    def blame(self, worker: str, kind: str, task: str) -> None:
        """Does nothing: there is only this machine."""

    def remarks(self) -> list[str]:
        return []


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
    from flows.workers.task_runner import WorkerTaskRunner

    n_workers = min(most_workers(settings, one_per_core), max(1, n_tasks))
    if settings.workers < 0 and one_per_core and n_workers < min(n_tasks, usable_cores()):
        _log.warning(
            "%s on %s, since %s of memory can be used here; local_settings.workers can ask for more",
            *(plural(n_workers, "worker"), plural(usable_cores(), "core"), size(usable_memory_bytes())),
        )
    started = _take_spare(n_workers, device) or _start(n_workers, device, logs / "dask")
    with started.closing, WorkerTaskRunner(logs, cluster=started.cluster.result()) as runner:
        try:
            yield LocalWorkers(runner, n_workers)
        except KeyboardInterrupt:
            _kill(started.cluster.result())
            raise
        if (kept := _kept.get()) is not None:
            kept.append(replace(started, closing=started.closing.pop_all()))


@contextmanager
def workers_ahead(n_workers: int, device: str, folder: Path, imports: Sequence[str]) -> Iterator[None]:
    """Starts workers in the background, for the first `local_workers` in the block that asks for as many.

    Args:
        n_workers: Number of workers.
        device: Device of the job.
        folder: Folder for Dask's own files, which is removed at the end.
        imports: Modules that the workers import at once.
    """
    started = _start(n_workers, device, folder, imports)
    token = _ahead.set([started])
    try:
        yield
    finally:
        _ahead.reset(token)
        started.closing.close()  # does nothing if it was taken


@contextmanager
def workers_kept() -> Iterator[None]:
    """Lets each `local_workers` in the block that asks for as many take those of the one before.

    The rounds of a job import the same libraries, which takes longer than many a round. Workers whose run ended with an
    error are not kept: they may still execute tasks.
    """
    kept: list[_Started] = []
    token = _kept.set(kept)
    try:
        yield
    finally:
        _kept.reset(token)
        for started in kept:
            started.closing.close()


@dataclass(frozen=True)
class _Started:
    """Workers that start in the background.

    Attributes:
        n_workers: Number of workers.
        device: Device of the job.
        cluster: The workers, or the error with which they did not start.
        closing: Ends them and removes their files.
    """

    n_workers: int
    device: str
    cluster: "Future[LocalCluster]"
    closing: ExitStack


# At most one entry each, which is removed when it is taken.
_ahead: ContextVar[list[_Started] | None] = ContextVar("workers ahead", default=None)
_kept: ContextVar[list[_Started] | None] = ContextVar("workers kept", default=None)


def _take_spare(n_workers: int, device: str) -> _Started | None:
    """Returns the workers that were kept, or started ahead; ends them if the run needs others."""
    spare = _kept.get() or _ahead.get()
    if not spare:
        return None
    started = spare.pop()
    if (started.n_workers, started.device) == (n_workers, device):
        return started
    started.closing.close()
    return None


def _says_something(record: logging.LogRecord) -> bool:
    """Returns whether a nanny's line is news: workers that still load libraries at the end are killed as intended."""
    return "Worker process still alive" not in record.msg


def _start(n_workers: int, device: str, folder: Path, imports: Sequence[str] = ()) -> _Started:
    allow_open_files(n_workers)
    logging.getLogger("distributed").setLevel(logging.WARNING)
    logging.getLogger("distributed.nanny").addFilter(_says_something)
    environment = worker_environment(usable_cores() // n_workers, folder)
    environment["TORCHINDUCTOR_CACHE_DIR"] = str(folder.absolute() / "torchinductor")
    environment[IMPORTS_VARIABLE] = ",".join(imports)
    if shares_gpus(device):
        environment[GPUS_VARIABLE] = ",".join(visible_gpus())
    closing = ExitStack()
    closing.callback(shutil.rmtree, folder, ignore_errors=True)
    closing.enter_context(_environment(environment))
    closing.enter_context(
        dask.config.set(
            {
                **SCHEDULER_SETTINGS,
                # Otherwise Dask and torch's cache would leave folders in the system's temporary folder.
                "temporary-directory": str(folder.absolute()),
                # Only this run uses the folder, and its disk may have no locks.
                "distributed.worker.use-file-locking": False,
                "distributed.scheduler.no-workers-timeout": NO_WORKERS_TIMEOUT,
            }
        )
    )
    # Ctrl-C on a terminal reaches all processes of the command; the run itself ends its workers. A blocked signal stays
    # blocked in threads and processes that are started from here. The start of multiprocessing's tracker unblocks it.
    resource_tracker.ensure_running()
    starter = ThreadPoolExecutor(1, "workers", signal.pthread_sigmask, (signal.SIG_BLOCK, {signal.SIGINT}))
    cluster = starter.submit(
        LocalCluster,
        n_workers=n_workers,
        threads_per_worker=1,
        host="127.0.0.1",
        security=True,  # keys of this run alone: other users of the machine can reach the ports
        dashboard_address="127.0.0.1:0",
        local_directory=str(folder),
        preload=[PRELOAD],
        # The core bounds its memory. Dask's limit would pause or kill workers while memory is left.
        memory_limit=None,
    )
    starter.shutdown(wait=False)
    closing.callback(_close, cluster)
    return _Started(n_workers, device, cluster, closing)


def _kill(cluster: LocalCluster) -> None:
    """Kills the workers: Dask would wait half a minute for the end of their tasks, which resume from checkpoints."""
    for nanny in cluster.workers.values():
        nanny.auto_restart = False
        with suppress(ProcessLookupError, TypeError):  # it has ended, or not begun
            os.kill(nanny.pid, signal.SIGKILL)


def _close(cluster: "Future[LocalCluster]") -> None:
    if cluster.exception() is None:
        cluster.result().close()


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
