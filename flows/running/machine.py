"""What commands need of the machine and its user: a home, streams that take any character, semaphores, memory."""

import errno
import io
import os
import socket
import sys
from pathlib import Path

from mlfilter_core.errors import MlfilterError


class MachineError(MlfilterError):
    """This machine lacks something that every run needs."""


def fit_any_machine() -> None:
    """Lets a command run where the terminal lacks characters, and where the user has no home.

    What a terminal or pipe cannot take is escaped, as in `\\u0411`. Users without an entry in the system's list, as in
    containers, get the home that Docker gives them; Prefect and others ask for one when they are imported. So do users
    whose home belongs to another, as where HOME is kept by sudo or a container: libraries read settings there.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        home = Path.home()
    except RuntimeError:
        os.environ["HOME"] = "/"
        return
    if _is_closed(home):
        print(f"warning: the home {home} cannot be read; HOME=/ is used instead", file=sys.stderr)
        os.environ["HOME"] = "/"


def _is_closed(folder: Path) -> bool:
    """Returns whether a folder exists that this user cannot read; libraries take a missing one for empty."""
    try:
        folder.stat()
    except PermissionError:
        return True
    except OSError:
        return False
    return not os.access(folder, os.R_OK | os.X_OK)


def check_semaphores() -> None:
    """Checks that processes of this machine can share semaphores, as workers and their nannies do.

    Raises:
        MachineError: They cannot: Linux keeps semaphores in /dev/shm.
    """
    import multiprocessing

    try:
        multiprocessing.get_context("spawn").Lock()
    except OSError as error:
        raise MachineError(
            f"workers cannot start: no semaphore can be made in /dev/shm ({error.strerror}); mount a tmpfs there, as "
            "container engines do unless they are told otherwise"
        ) from error


def exhausted(error: Exception) -> MachineError | None:
    """Returns what to tell of an error that means that this process got no more memory, or no more threads."""
    has_none = isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
    if not has_none and str(error) != "can't start new thread":  # of the threading module
        return None
    reason = str(error) or type(error).__name__
    return MachineError(
        f"{socket.gethostname()} gives the process of the run no more memory or threads ({reason}); "
        "look at free, ulimit -u and ulimit -v, and at the limits of the login node. Finished files are kept, and a "
        "rerun continues"
    )
