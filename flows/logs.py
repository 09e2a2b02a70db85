"""Log files of a run, and the core's log lines for the Prefect UI."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
CORE = "mlfilter_core"
LOGGERS = ("prefect.flow_runs", "prefect.task_runs", CORE)


@contextmanager
def logging_to(folder: Path, process: str, ui: logging.Handler) -> Iterator[None]:
    """Appends this process's log to `<folder>/<process>.log`, and gives the core's lines to the Prefect UI.

    Args:
        folder: Made where it is missing.
        process: `flow`, or a worker's name.
        ui: Takes the core's lines to the UI; Prefect's own loggers have such a handler.
    """
    folder.mkdir(parents=True, exist_ok=True)
    to_file = logging.FileHandler(folder / f"{process}.log", encoding="utf-8", delay=True)
    to_file.setFormatter(logging.Formatter(FORMAT))
    core = logging.getLogger(CORE)
    core.setLevel(logging.DEBUG)
    ui.setLevel(logging.INFO)
    for name in LOGGERS:
        logging.getLogger(name).addHandler(to_file)
    core.addHandler(ui)
    try:
        yield
    finally:
        for name in LOGGERS:
            logging.getLogger(name).removeHandler(to_file)
        core.removeHandler(ui)
        to_file.close()
