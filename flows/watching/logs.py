"""Writes a run's log files, and sends the log lines of this project to the Prefect UI."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
CORE, FLOWS = "mlfilter_core", "flows"
# Logger of the lines about finished files and progress, in the place of which a terminal has a display.
PROGRESS = "flows.progress"
TASK_RUNS = "prefect.task_runs"
LOGGERS = ("prefect.flow_runs", TASK_RUNS, CORE, FLOWS)
# Nobody reads more lines about single tasks in the UI; each takes about 1 kB of Prefect's database.
MOST_TASKS_WITH_LINES = 10_000

# Log files that this process cannot write. A worker opens its log for each task, and would say so ten thousand times.
_lost: set[str] = set()


@contextmanager
def logging_to(folder: Path, process: str, ui: logging.Handler) -> Iterator[None]:
    """Appends this process's log to `<folder>/<process>.log`, and sends this project's lines to the Prefect UI.

    Args:
        folder: Folder of the log files; created if missing.
        process: `flow`, or a worker's name.
        ui: Handler that sends this project's lines to the UI; Prefect's own loggers have one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    to_file = _LogFile(folder / f"{process}.log", encoding="utf-8", delay=True)
    to_file.setFormatter(logging.Formatter(FORMAT))
    ui.setLevel(logging.INFO)
    own = [logging.getLogger(name) for name in (CORE, FLOWS)]
    for logger in own:
        logger.setLevel(logging.DEBUG)
        logger.addHandler(ui)
    for name in LOGGERS:
        logging.getLogger(name).addHandler(to_file)
    try:
        yield
    finally:
        for name in LOGGERS:
            logging.getLogger(name).removeHandler(to_file)
        for logger in own:
            logger.removeHandler(ui)
        to_file.close()


@contextmanager
def thinned(n_tasks: int, ui: logging.Handler) -> Iterator[int]:
    """Keeps lines about single tasks from the Prefect UI, except warnings, if the run has very many tasks.

    Args:
        n_tasks: Number of tasks of the run.
        ui: Handler that sends the lines of workers to the UI.

    Yields:
        Level of lines about finished files. The log files have lines of every level.
    """
    if n_tasks <= MOST_TASKS_WITH_LINES:
        yield logging.INFO
        return
    states = logging.getLogger(TASK_RUNS)
    handlers = [ui, *(handler for handler in states.handlers if isinstance(handler, type(ui)))]
    for handler in handlers:
        handler.addFilter(_is_warning)
    try:
        yield logging.DEBUG
    finally:
        for handler in handlers:
            handler.removeFilter(_is_warning)


def _is_warning(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING


class _LogFile(logging.FileHandler):
    """A log file that never stops the run: if it cannot be written, as on a full disk, stderr says so once."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            super().emit(record)
        except OSError:  # on opening the file; the logging module handles errors of writing only
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (the logging module's name)
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif self.baseFilename not in _lost:
            _lost.add(self.baseFilename)
            print(f"{self.baseFilename} cannot be written ({error}); lines of the log are lost", file=sys.stderr)

    def close(self) -> None:
        with suppress(OSError):  # lines that could not be written before
            super().close()
