"""Locks that show which files a living process is writing.

They are `flock(2)` locks: the kernel releases them when a process ends in any way, and none survives a reboot. They
work across machines where the file system supports it: NFS, Lustre mounted with `flock`, GPFS and CephFS.
"""

import fcntl
import hashlib
import logging
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

LOCK_SUFFIX = ".lock"
WAIT_S = 1
# Mount options and file systems whose locks do not work across machines.
LOCAL_OPTIONS = ("localflock", "nolock", "local_lock=all", "local_lock=flock")
LOCAL_FILE_SYSTEMS = ("beegfs", "fuse", "9p", "vboxsf")

_log = logging.getLogger(__name__)


@contextmanager
def claim(target: Path) -> Iterator[bool]:
    """Makes this process the only one that writes a file; waits while another does.

    Does nothing where the file system has no locks.

    Args:
        target: The file, which need not exist; missing folders are created.

    Yields:
        Whether the previous process that claimed the file died before it was done.
    """
    lock = hidden_name(target, LOCK_SUFFIX)
    handle = _taken(lock, target)
    try:
        has_died = handle.tell() > 0  # at the end of what the previous process wrote
        handle.truncate(0)
        with suppress(OSError):  # a full disk; the text is for waiting processes and for `remove_leftovers`
            os.write(handle.fileno(), f"{machine()} process {os.getpid()} on {socket.gethostname()}".encode())
        yield has_died
    finally:
        with suppress(OSError):  # in a folder that became read-only; a lock that no process holds does no harm
            lock.unlink()  # while it is held, so that no other process can claim the removed file
        handle.close()


def is_claimed(target: Path) -> bool | None:
    """Returns whether a living process has claimed a file; None where this machine cannot know."""
    return is_held(hidden_name(target, LOCK_SUFFIX))


def is_held(lock: Path) -> bool | None:
    """Returns the same for the lock file of a claim."""
    made_on = machine_of_lock(lock)
    if made_on is None:
        return False
    try:
        with open(lock, "r+b") as handle:
            is_free = _lock(handle)
    except OSError:  # just removed by its holder, or a file of another user
        return None if lock.exists() else False
    if is_free is None or (is_free and made_on != machine() and why_locks_are_local(lock.parent) is not None):
        return None
    return not is_free


def hidden_name(target: Path, suffix: str) -> Path:
    """Returns the path of a hidden file that belongs to `target`; a hash where the name would exceed 255 bytes."""
    name = f".{target.name}{suffix}"
    if len(name.encode()) > 255:
        name = f".{hashlib.sha256(os.fsencode(target.name)).hexdigest()}{suffix}"
    return target.with_name(name)


def hold(handle: IO[bytes]) -> None:
    """Locks an open file until it is closed or the process ends."""
    _lock(handle)


def remove_if_abandoned(path: Path, machine_of_writer: str, process: int | None) -> bool:
    """Removes a file whose writer has ended.

    Args:
        path: A file that its writer holds with `hold`.
        machine_of_writer: Result of `machine` for the writer. Locks of this machine are visible on any file system.
        process: Process id of the writer, which decides where there are no locks.

    Returns:
        Whether it was removed. A file stays where it is unknown whether its writer has ended.
    """
    try:
        with open(path, "r+b") as handle:
            if not _is_abandoned(handle, path, machine_of_writer, process):
                return False
            path.unlink()  # while it is held
    except OSError:  # removed by its writer, or a file of another user
        return False
    return True


def is_abandoned(path: Path, machine_of_writer: str, process: int | None) -> bool:
    """Returns whether `remove_if_abandoned` would remove a file."""
    try:
        with open(path, "r+b") as handle:
            return _is_abandoned(handle, path, machine_of_writer, process)
    except OSError:
        return False


def _is_abandoned(handle: IO[bytes], path: Path, machine_of_writer: str, process: int | None) -> bool:
    is_near = machine_of_writer == machine()
    is_free = _lock(handle)
    if is_free is None and process is not None and is_near:
        is_free = not is_running(process)
    return bool(is_free) and (is_near or why_locks_are_local(path.parent) is None)


def machine_of_lock(path: Path) -> str | None:
    """Returns the result of `machine` of the process that made a lock file; None for a lock file of another tool."""
    try:
        made_by = path.read_text(encoding="utf-8", errors="replace").split(" ")
    except OSError:
        return None
    return made_by[0] if made_by[1:2] == ["process"] else None


def machine() -> str:
    """Returns an identifier of the process ids' scope: the host and, in a container, the process namespace."""
    namespace = Path("/proc/self/ns/pid")
    inode = namespace.stat().st_ino if namespace.exists() else 0
    return hashlib.sha256(f"{socket.gethostname()} {inode}".encode()).hexdigest()[:8]


def has_locks(folder: Path) -> bool:
    """Returns whether the file system of a folder has locks at all; claims and `hold` do nothing where it has none."""
    with tempfile.TemporaryFile(dir=folder) as probe:
        return _lock(probe) is not None


def why_locks_are_local(folder: Path) -> str | None:
    """Returns why locks in a folder do not work across machines, or None where no reason is known."""
    mount = _mount(folder.resolve())
    if mount is None:
        return None
    point, kind, options = mount
    option = next((option for option in LOCAL_OPTIONS if option in options.split(",")), None)
    if option is not None:
        return f"{point} ({kind}) is mounted with {option}"
    if kind.partition(".")[0] in LOCAL_FILE_SYSTEMS:
        return f"{point} is {kind}"
    return None


def _taken(lock: Path, target: Path) -> IO[str]:
    has_said = False
    while True:
        handle = _opened(lock)
        try:
            if _lock(handle) is not False and _is_named(handle, lock):
                return handle
            if not has_said:
                handle.seek(0)
                holder = handle.read().partition(" ")[2] or "another process"
                if _is_named(handle, lock):
                    _log.info("%s is being written by %s; waiting for it", target, holder)
                    has_said = True
        except BaseException:
            handle.close()
            raise
        handle.close()
        if has_said:
            time.sleep(WAIT_S)


def _opened(lock: Path) -> IO[str]:
    while True:
        lock.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # its previous holder removed the folder, too
            return open(lock, "a+", encoding="utf-8")


def _is_named(handle: IO[str], path: Path) -> bool:
    """Returns whether an open file still has its name, as its previous holder may have just removed it."""
    try:
        named = path.stat()
    except FileNotFoundError:
        return False
    opened = os.fstat(handle.fileno())
    return (named.st_dev, named.st_ino) == (opened.st_dev, opened.st_ino)


def _lock(handle: IO[bytes] | IO[str]) -> bool | None:
    """Takes a lock; returns False where another process has it, None where the file system has no locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # ENOLCK, ENOSYS, EOPNOTSUPP or EINVAL, depending on the file system
        return None
    return True


def is_running(process: int) -> bool:
    """Returns whether a process of this machine is alive."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # the process belongs to another user
        pass
    return True


def _mount(folder: Path) -> tuple[str, str, str] | None:
    """Returns mount point, type and options of the file system of a folder, on Linux."""
    best: tuple[str, str, str] | None = None
    try:
        lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return None
    for line in lines:
        before, _, after = line.partition(" - ")
        point = before.split()[4].encode().decode("unicode_escape")
        kind, _, options = after.split(" ", 2)
        is_above = folder.is_relative_to(point)
        if is_above and (best is None or len(point) >= len(best[0])):
            best = point, kind, f"{before.split()[5]},{options}"
    return best
