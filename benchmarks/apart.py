"""Work in a process of its own, which reports results one by one and ends at a given time.

A forked process begins without imports: its parent imports all and computes nothing. It can be ended in any state, and
what it does to a GPU ends with it.
"""

import ctypes
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection

FORK = get_context("fork")
PR_SET_PDEATHSIG = 1  # of Linux's prctl.h
MAX_REASON = 300  # characters


@dataclass(frozen=True)
class Missing:
    """The reason why a result is missing."""

    reason: str

    @staticmethod
    def due_to(error: Exception) -> "Missing":
        """Returns an error as the reason."""
        return Missing(f"{type(error).__name__}: {' '.join(str(error).split())[:MAX_REASON]}")


Result = float | str | Missing
Work = Callable[[], Iterator[tuple[str, Result]]]
REST = ""  # name of a message about all results that are still missing


def apart(work: Work, until: float) -> Iterator[tuple[str, Result]]:
    """Yields the names and results that `work` yields in its process.

    Args:
        work: The work.
        until: When its process is ended, on the clock of `time.monotonic`. Then, and where it fails, the last result is
            a `Missing` by the name `REST`.
    """
    receiver, sender = FORK.Pipe(duplex=False)
    process = FORK.Process(target=_send, args=(os.getpid(), receiver, sender, work))
    started = time.monotonic()
    process.start()
    sender.close()
    try:
        while receiver.poll(max(0.0, until - time.monotonic())):
            yield receiver.recv()
        yield REST, Missing(f"its {time.monotonic() - started:.0f} s were over")
    except EOFError:
        process.join()
        if process.exitcode:
            yield REST, Missing(f"its process ended with exit status {process.exitcode}")
    finally:
        process.kill()
        process.join()


def _send(parent: int, receiver: Connection, sender: Connection, work: Work) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # the kernel ends this process with its parent
    if os.getppid() != parent:
        return
    receiver.close()
    try:
        for message in work():
            sender.send(message)
    except Exception as error:
        sender.send((REST, Missing.due_to(error)))
