"""The log lines that a command shows on its terminal: those that its user reads, none of Prefect's own.

Imports no Prefect. What Prefect itself logs about runs is in the run's log files and in the UI.
"""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from enum import Enum
from typing import TextIO

from flows.watching.logs import CORE, FLOWS, PROGRESS

# Prefect's lines about runs: names and states, or what is said here already.
OF_PREFECT = ("prefect.flow_runs", "prefect.task_runs")


class Verbosity(Enum):
    """How much a command writes to the terminal. Errors are always written.

    `QUIET` writes warnings, and no results; `VERBOSE` writes all lines of the log, those of Prefect included.
    """

    QUIET = "quiet"
    NORMAL = "normal"
    VERBOSE = "verbose"


verbosity: ContextVar[Verbosity] = ContextVar("verbosity", default=Verbosity.NORMAL)


@contextmanager
def log_on_terminal() -> Iterator[None]:
    """Writes the log of the runs in the block to stderr, as far as `verbosity` says.

    Call it after Prefect has been imported, which configures the logging of the process.
    """
    root, how = logging.getLogger(), verbosity.get()
    handler = TerminalLog(how)
    consoles = [each for each in root.handlers if hasattr(each, "console")]
    hidden = (FLOWS, CORE) if how is Verbosity.VERBOSE else (FLOWS, CORE, *OF_PREFECT)

    def is_of_others(record: logging.LogRecord) -> bool:
        return not _is_of(record, *hidden)

    for console in consoles:
        console.addFilter(is_of_others)
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        for console in consoles:
            console.removeFilter(is_of_others)


def can_redraw(stream: TextIO) -> bool:
    """Returns whether a stream is a terminal that can replace lines, so that progress is a display, not a log."""
    from rich.console import Console

    console = Console(file=stream)
    return console.is_terminal and not console.is_dumb_terminal and verbosity.get() is not Verbosity.QUIET


class TerminalLog(logging.Handler):
    """Writes lines of the flows, and warnings of the core, to the stderr of the moment, which a display may replace."""

    def __init__(self, how: Verbosity) -> None:
        super().__init__()
        self._has_display = can_redraw(sys.stderr)
        self._how = how
        self._warned: set[str] = set()  # each worker warns of the same

    def emit(self, record: logging.LogRecord) -> None:
        if not self._is_wanted(record):
            return
        message = record.getMessage()
        if record.levelno >= logging.WARNING:
            if message in self._warned:
                return
            self._warned.add(message)
            message = f"{record.levelname.lower()}: {message}"
        try:
            if not sys.stderr.isatty():  # read later
                message = f"{time.strftime('%H:%M:%S', time.localtime(record.created))} {message}"
            if record.levelno < self.level:  # another thread has silenced the terminal meanwhile
                return
            print(message, file=sys.stderr, flush=True)
        except OSError:  # the terminal is gone; the log files have the line
            pass

    def _is_wanted(self, record: logging.LogRecord) -> bool:
        if not _is_of(record, FLOWS, CORE):
            return False
        if record.levelno >= logging.WARNING or self._how is Verbosity.QUIET:
            return record.levelno >= logging.WARNING
        if self._how is not Verbosity.VERBOSE and (
            _is_of(record, CORE) or (record.name == PROGRESS and self._has_display)
        ):
            return False
        return record.levelno >= logging.INFO


def _is_of(record: logging.LogRecord, *names: str) -> bool:
    return any(record.name == name or record.name.startswith(f"{name}.") for name in names)
