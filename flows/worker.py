"""What surrounds a task's function on a Dask worker. Imports no Prefect: workers have no use for its API."""

import logging
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from distributed import Worker, get_worker

from flows.logs import logging_to
from mlfilter_core.errors import MlfilterError

Result = TypeVar("Result")

# Dask's name for this module, which each worker loads before anything else.
PRELOAD = __name__
# For the workers' environment: devices as in CUDA_VISIBLE_DEVICES, of which each worker takes one.
GPUS_VARIABLE = "MLFILTER_GPUS"
# What workers tell the flow goes by this name.
TOPIC = "mlfilter"
STARTED = "started"
LOGGED = "logged"


def dask_setup(worker: Worker) -> None:
    """Called by Dask when a worker has started: of several GPUs it sees one from now on.

    CUDA looks at the variable when it is first used, in the first task.
    """
    gpus = os.environ.get(GPUS_VARIABLE, "")
    if gpus:
        devices = gpus.split(",")
        n = int(str(worker.name).rpartition("-")[2])  # 3, or job-3 where a job holds several workers
        os.environ["CUDA_VISIBLE_DEVICES"] = devices[n % len(devices)]


def run_on_worker(
    function: Callable[..., Result], arguments: dict[str, Any], run: str, logs: Path
) -> "Result | MlfilterError":
    """Calls a function in this worker process; its log lines go to the worker's file and to the flow.

    Args:
        function: Of a task.
        arguments: By name.
        run: What the flow calls this task run; stands in each event that is sent to it.
        logs: Folder of the log files.

    Returns:
        What the function returns, or the expected error that it raises.
    """
    worker = get_worker()
    name = f"worker-{socket.gethostname()}-{os.getpid()}"
    worker.log_event(TOPIC, {"event": STARTED, "run": run, "worker": name})
    with logging_to(logs, name, _ToFlow(worker, run)):
        try:
            return function(**arguments)
        except MlfilterError as error:  # raised, Dask would print it with its traceback
            return error


class _ToFlow(logging.Handler):
    """Sends log lines to the flow's process, which has the Prefect API."""

    def __init__(self, worker: Worker, run: str) -> None:
        super().__init__()
        self._worker = worker
        self._run = run

    def emit(self, record: logging.LogRecord) -> None:
        line = {"name": record.name, "level": record.levelno, "message": record.getMessage(), "time": record.created}
        self._worker.log_event(TOPIC, {"event": LOGGED, "run": self._run, **line})
