"""Log files of a run, and the core's log lines in the Prefect UI."""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prefect.logging.handlers import APILogHandler

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
LOGGERS = ("prefect.flow_runs", "prefect.task_runs", "mlfilter_core")


@contextmanager
def logging_to(folder: Path, process: str) -> Iterator[None]:
    """Appends this process's log to `<folder>/<process>.log`, and sends the core's lines to the Prefect UI.

    Args:
        folder: Made where it is missing.
        process: `flow`, or a worker's name from `worker_name`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    to_file = logging.FileHandler(folder / f"{process}.log", encoding="utf-8", delay=True)
    to_file.setFormatter(logging.Formatter(FORMAT))
    to_ui = APILogHandler()
    core = logging.getLogger("mlfilter_core")
    core.setLevel(logging.INFO)
    for name in LOGGERS:
        logging.getLogger(name).addHandler(to_file)
    core.addHandler(to_ui)  # Prefect's own loggers have one
    try:
        yield
    finally:
        for name in LOGGERS:
            logging.getLogger(name).removeHandler(to_file)
        core.removeHandler(to_ui)
        to_file.close()


def worker_name() -> str:
    """Returns a name for this process that no other worker of the cluster has."""
    return f"worker-{socket.gethostname()}-{os.getpid()}"
