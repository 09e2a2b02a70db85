"""Ends a command that is interrupted: by Ctrl-C, by SIGTERM, or because its terminal is gone.

The first signal raises `Stopped` in the main thread, so that the run ends in order: states are reported, jobs
cancelled, the screen restored. After some seconds, or at the second signal, the process ends at once, with all that it
started. Nothing is lost either way: outputs appear complete or not at all, and guards in sessions of their own cancel
Slurm jobs and report the end of the run.
"""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from flows.watching.terminal import TerminalLog

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Time that a run gets to end in order. People wait about 10 s before they press Ctrl-C again; Slurm waits 30 s.
ORDERLY_S = 8.0
SIGNAL_STATUS = 128  # added to the number of the signal, as in a shell

_active: "list[_Handler]" = []


class Stopped(KeyboardInterrupt):
    """A signal asked the command to end.

    Attributes:
        status: Exit status of the command.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.status = SIGNAL_STATUS + number


@contextmanager
def stopped_by_signals(message: str) -> Iterator[None]:
    """Makes signals raise `Stopped` in the block, apart from those that are ignored.

    Does nothing outside the main thread, which alone gets signals.

    Args:
        message: Line that is printed at once.

    Raises:
        Stopped: A signal arrived in the block, whatever was raised because of it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = _Handler(message)
    heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]  # nohup ignores SIGHUP
    before = {number: signal.signal(number, handler) for number in heard}
    _active.append(handler)
    try:
        yield
    except BaseException:
        if handler.stopped is not None:
            raise handler.stopped from None
        raise
    finally:
        _active.remove(handler)
        if handler.stopped is None:  # else a second signal still ends the process at once
            for number, own in before.items():
                signal.signal(number, own)


@contextmanager
def instead_of_prefect() -> Iterator[None]:
    """Keeps the command's reaction to SIGTERM inside a Prefect flow, which has its own; use it in the flow's function.

    Prefect would tell this process only after the flow has ended. Does nothing where a deployment runs the flow.
    """
    if not _active or threading.current_thread() is not threading.main_thread():
        yield
        return
    prefects = signal.signal(signal.SIGTERM, _active[-1])
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, prefects)


def silence() -> None:
    """Keeps log lines about what ends from the terminal of a command; the run's log files still get them."""
    if not _active:
        return
    for logger in (logging.getLogger(), *map(logging.getLogger, list(logging.root.manager.loggerDict))):
        for handler in logger.handlers:
            if hasattr(handler, "console") or type(handler) in (logging.StreamHandler, TerminalLog):
                handler.setLevel(logging.CRITICAL + 1)
    logging.lastResort = None


class _Handler:
    """Handles the signals of one command.

    Attributes:
        stopped: What was raised; None before the first signal.
    """

    def __init__(self, message: str) -> None:
        self.stopped: Stopped | None = None
        self._message = message

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.stopped is not None:
            _end_at_once(self.stopped.status)
        self.stopped = Stopped(number)
        silence()  # first, so that the message is the last line
        with suppress(OSError):  # the terminal may be gone
            print(self._message, file=sys.stderr, flush=True)
        threading.Thread(target=_end_later, args=(self.stopped.status,), name="stopping", daemon=True).start()
        raise self.stopped


def _end_later(status: int) -> None:
    time.sleep(ORDERLY_S)
    _end_at_once(status)


def _end_at_once(status: int) -> None:
    """Ends this process and its descendants, apart from those that have sessions of their own."""
    import psutil

    with suppress(Exception):
        session = os.getsid(0)
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error, OSError):
                if os.getsid(process.pid) == session:
                    process.kill()
    _show_cursor()
    os._exit(status)


def _show_cursor() -> None:
    """Shows the cursor of a terminal again, which a display may have hidden."""
    stream: Any = sys.stderr
    with suppress(OSError, ValueError):
        if stream.isatty():
            stream.write("\x1b[?25h\n")
            stream.flush()
