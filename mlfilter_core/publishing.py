"""A file that appears complete or not at all."""

import hashlib
import os
import socket
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from mlfilter_core.errors import ConfigError, OutputConflictError

Report = TypeVar("Report")

TEMPORARY_SUFFIX = ".part"


@contextmanager
def publish(target: Path) -> Iterator[Path]:
    """Gives a temporary path beside `target` that becomes `target` when the block ends well.

    The content is on disk (fsync of the file and of its folder) before `target` names it. When the
    block raises, the temporary file is removed and `target` is as it was. Missing folders are made. What a
    killed process leaves is for `remove_leftovers`.

    Yields:
        An existing, empty file with a unique name: `.<name>.<machine>.<process>.<random>.part`.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    # A name holds 255 bytes at most, and a character up to four of them.
    unique = f"{_machine()}.{os.getpid()}.{uuid.uuid4().hex[:8]}"
    temporary = target.parent / f".{target.name[:40]}.{unique}{TEMPORARY_SUFFIX}"
    temporary.touch(exist_ok=False)
    try:
        yield temporary
        _fsync(temporary)
        os.replace(temporary, target)
        _fsync(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> int:
    """Removes the temporary files below a folder that killed processes of this machine left.

    Returns:
        How many there were.
    """
    machine, n_removed = _machine(), 0
    for path in folder.rglob(f".*.{machine}.*.*{TEMPORARY_SUFFIX}"):
        process = path.name.split(".")[-3]
        if process.isdigit() and not _is_running(int(process)):
            path.unlink(missing_ok=True)
            n_removed += 1
    return n_removed


def unless_overwritten(finished: Callable[[], Report | None], overwrite: bool) -> Report | None:
    """Returns what `finished` returns; with `overwrite`, an output in the way is one to do."""
    try:
        return finished()
    except OutputConflictError:
        if overwrite:
            return None
        raise


def check_writable(folder: Path, field: str = "params.output_dir") -> None:
    """Makes a folder for outputs and proves that files can be made in it.

    Args:
        folder: The folder.
        field: Where a job names it, for the message.

    Raises:
        ConfigError: They cannot.
    """
    probe = folder / f".{uuid.uuid4().hex}{TEMPORARY_SUFFIX}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigError(
            f"{field}: {folder} cannot be written to ({error.strerror}); mend its permissions or give another"
        ) from error


def _machine() -> str:
    """Returns a name for what shares its process numbers: host and, in a container, process namespace."""
    namespace = Path("/proc/self/ns/pid")
    inode = namespace.stat().st_ino if namespace.exists() else 0
    return hashlib.sha256(f"{socket.gethostname()} {inode}".encode()).hexdigest()[:8]


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        pass
    return True


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
