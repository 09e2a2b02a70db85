"""Runs a task's function on a Dask worker. Does not import Prefect: workers do not use its API."""

import faulthandler
import functools
import gc
import importlib
import logging
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from distributed import Worker, get_worker

from flows.watching.logs import CORE, logging_to
from mlfilter_core.errors import MlfilterError
from mlfilter_core.work.progress import Progress, heard_by
from mlfilter_core.work.workload import worker_name

Result = TypeVar("Result")

# The module that each worker loads first: this one.
PRELOAD = __name__
# Environment variable of the workers: devices as in CUDA_VISIBLE_DEVICES, one for each worker.
GPUS_VARIABLE = "MLFILTER_GPUS"
# Environment variable of the workers: modules that they import while nothing else waits for them.
IMPORTS_VARIABLE = "MLFILTER_IMPORTS"
# Dask's topic of the events that workers send to the flow, and the kinds of events.
TOPIC = "mlfilter"
STARTED = "started"
PROGRESSED = "progressed"
LOGGED = "logged"
BEGINS = "task run %s begins"
# First words of the traceback that Python writes when the process dies.
CRASH = "Fatal Python error"
N_LAST_LINES = 12


def dask_setup(worker: Worker) -> None:
    """Assigns one of several GPUs to this worker, and begins imports; called by Dask when the worker has started.

    CUDA reads the variable on first use, which is in the first task.
    """
    gpus = os.environ.get(GPUS_VARIABLE, "")
    if gpus:
        devices = gpus.split(",")
        n = int(str(worker.name).rpartition("-")[2])  # 3, or job-3 where a job holds several workers
        os.environ["CUDA_VISIBLE_DEVICES"] = devices[n % len(devices)]
    imports = [name for name in os.environ.get(IMPORTS_VARIABLE, "").split(",") if name]
    if imports:
        threading.Thread(target=_import, args=(imports,), name="imports", daemon=True).start()


def run_on_worker(
    function: Callable[..., Result], arguments: dict[str, Any], run: str, logs: Path
) -> "Result | MlfilterError":
    """Calls a function in this worker process; its log lines go to the worker's log file and to the flow.

    Args:
        function: The task's function.
        arguments: Its arguments, by name.
        run: The flow's id for this task run, which each event to the flow contains.
        logs: Folder of the log files.

    Returns:
        The function's result, or the expected error that it raises.
    """
    worker = get_worker()
    name = worker_name()
    # Not under "worker": Dask puts the address there.
    worker.log_event(TOPIC, {"event": STARTED, "run": run, "name": name, "address": worker.address})
    with suppress(OSError):  # on a full disk: a missing log must not fail the task
        _write_crashes_to(logs / f"{name}.log")

    def tell_flow(progress: Progress) -> None:
        worker.log_event(TOPIC, {"event": PROGRESSED, "run": run, "name": name, "progress": asdict(progress)})

    with logging_to(logs, name, _ToFlow(worker, run)), heard_by(tell_flow):
        logging.getLogger(CORE).debug(BEGINS, run)  # on disk at once; an event is lost if the worker dies now
        try:
            return function(**arguments)
        except MlfilterError as error:  # if it were raised, Dask would print its traceback
            return error


def last_words(logs: Path, run: str) -> str:
    """Returns the end of the log of the last worker that began a task run, to explain the worker's death.

    Args:
        logs: Folder of the log files.
        run: The flow's id for the task run.
    """
    begun = [log for log in logs.glob("worker-*.log") if BEGINS % run in log.read_text("utf-8", "replace")]
    if not begun:
        return "no worker had begun it; see the workers' logs"
    log = max(begun, key=lambda path: path.stat().st_mtime_ns)
    _, _, lines = log.read_text("utf-8", "replace").rpartition(BEGINS % run)
    said = lines.splitlines()[1:]
    crash = next((i for i, line in enumerate(said) if line.startswith(CRASH)), None)
    if crash is not None:
        return "\n".join([f"its log {log} ends with:", *said[crash : crash + N_LAST_LINES]])
    return "\n".join(
        [
            "it was killed from outside, for example by the kernel because memory ran out: no error is in its log "
            f"{log}, which ends with:",
            *said[-N_LAST_LINES // 4 :],
        ]
    )


def _import(modules: list[str]) -> None:
    gc.disable()  # imports leave next to no garbage, and looking for it takes a fifth of their CPU time
    try:
        for module in modules:
            with suppress(Exception):  # the task that needs it reports why it cannot be imported
                importlib.import_module(module)
    finally:
        gc.enable()


@functools.cache
def _write_crashes_to(log: Path) -> None:
    """Makes Python write a traceback to the log if the process dies of a segmentation fault or an abort."""
    log.parent.mkdir(parents=True, exist_ok=True)
    faulthandler.enable(open(log, "a"), all_threads=False)


class _ToFlow(logging.Handler):
    """Sends log lines to the flow's process, which passes them to the Prefect API."""

    def __init__(self, worker: Worker, run: str) -> None:
        super().__init__()
        self._worker = worker
        self._run = run

    def emit(self, record: logging.LogRecord) -> None:
        line = {"name": record.name, "level": record.levelno, "message": record.getMessage(), "time": record.created}
        self._worker.log_event(TOPIC, {"event": LOGGED, "run": self._run, **line})
