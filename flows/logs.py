"""Log files of a run, and the core's log lines in the Prefect UI."""

import logging
import os
import socket
from pathlib import Path

from prefect.logging.handlers import APILogHandler

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
LOGGERS = ("prefect.flow_runs", "prefect.task_runs", "mlfilter_core")


def log_to(folder: Path, process: str) -> Path:
    """Appends this process's log to `<folder>/<process>.log`, and the core's lines to the Prefect UI.

    A process logs to one folder at a time: a second call moves the log.

    Args:
        folder: Made where it is missing.
        process: `flow`, or a worker's name from `worker_name`.
    """
    path = folder / f"{process}.log"
    core = logging.getLogger("mlfilter_core")
    if any(isinstance(handler, _RunFile) and handler.path == path for handler in core.handlers):
        return path
    folder.mkdir(parents=True, exist_ok=True)
    handler = _RunFile(path)
    handler.setFormatter(logging.Formatter(FORMAT))
    for name in LOGGERS:
        logger = logging.getLogger(name)
        for old in [old for old in logger.handlers if isinstance(old, _RunFile)]:
            logger.removeHandler(old)
            old.close()
        logger.addHandler(handler)
    core.setLevel(logging.INFO)
    core.propagate = False
    if not any(isinstance(handler, APILogHandler) for handler in core.handlers):
        core.addHandler(APILogHandler())
    return path


def worker_name() -> str:
    """Returns a name for this process that no other worker of the cluster has."""
    return f"worker-{socket.gethostname()}-{os.getpid()}"


class _RunFile(logging.FileHandler):
    def __init__(self, path: Path) -> None:
        super().__init__(path, encoding="utf-8", delay=True)
        self.path = path
