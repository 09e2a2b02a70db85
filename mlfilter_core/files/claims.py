"""Which files a living process is writing, told by locks that end with their process.

The locks are those of `flock(2)`: the kernel lets go of them when a process ends in any way, and a reboot leaves none.
Across machines they hold where the file system carries them, as NFS, Lustre mounted with `flock`, GPFS and CephFS do.
"""

import fcntl
import hashlib
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

LOCK_SUFFIX = ".lock"
WAIT_S = 1
# Mount options and file systems whose locks do not reach other machines.
LOCAL_OPTIONS = ("localflock", "nolock", "local_lock=all", "local_lock=flock")
LOCAL_FILE_SYSTEMS = ("beegfs", "fuse", "9p", "vboxsf")

_log = logging.getLogger(__name__)


@contextmanager
def claim(target: Path) -> Iterator[bool]:
    """Makes this process the only one that writes a file; waits while another does.

    Where the file system has no locks, it makes no difference.

    Args:
        target: The file, which need not exist; missing folders are made.

    Yields:
        Whether the process that claimed it before died meanwhile.
    """
    lock = hidden_name(target, LOCK_SUFFIX)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle = _taken(lock, target)
    try:
        has_died = handle.tell() > 0  # at the end of what the last one wrote
        handle.truncate(0)
        with suppress(OSError):  # on a full disk: a word for those who wait, and for `remove_leftovers`
            os.write(handle.fileno(), f"{machine()} process {os.getpid()} on {socket.gethostname()}".encode())
        yield has_died
    finally:
        with suppress(OSError):  # in a folder that became read-only; a lock that nobody holds is in nobody's way
            lock.unlink()  # while it is held: nobody takes a name that is gone for a claim
        handle.close()


def is_claimed(target: Path) -> bool | None:
    """Tells whether a living process has claimed a file; None where that cannot be told from this machine."""
    lock = hidden_name(target, LOCK_SUFFIX)
    made_on = machine_of_lock(lock)
    if made_on is None:
        return False
    try:
        with open(lock, "r+b") as handle:
            is_free = _lock(handle)
    except OSError:  # removed by its holder just now, or another user's
        return None if lock.exists() else False
    if is_free is None or (is_free and made_on != machine() and why_locks_are_local(lock.parent) is not None):
        return None
    return not is_free


def hidden_name(target: Path, suffix: str) -> Path:
    """Returns the name of a hidden file that belongs to `target`, whoever asks; a name holds 255 bytes at most."""
    name = f".{target.name}{suffix}"
    if len(name.encode()) > 255:
        name = f".{hashlib.sha256(os.fsencode(target.name)).hexdigest()}{suffix}"
    return target.with_name(name)


def hold(handle: IO[bytes]) -> None:
    """Marks an open file as being written, until it is closed or the process ends."""
    _lock(handle)


def remove_if_abandoned(path: Path, machine_of_writer: str, process: int | None) -> bool:
    """Removes a file whose writer is gone.

    Args:
        path: A file that its writer holds.
        machine_of_writer: What `machine` gave there. Locks of this machine are seen here on any file system.
        process: Of the writer, by which it is told where there are no locks.

    Returns:
        Whether it was removed. One that cannot be told to be abandoned stays.
    """
    is_near = machine_of_writer == machine()
    try:
        with open(path, "r+b") as handle:
            is_free = _lock(handle)
            if is_free is None and process is not None and is_near:
                is_free = not _is_running(process)
            if not is_free or not (is_near or why_locks_are_local(path.parent) is None):
                return False
            path.unlink()  # while it is held
    except OSError:  # removed by its writer, or another user's
        return False
    return True


def machine_of_lock(path: Path) -> str | None:
    """Returns what `machine` gave where a lock file was made; None where it is no lock file of ours."""
    try:
        made_by = path.read_text(encoding="utf-8", errors="replace").split(" ")
    except OSError:
        return None
    return made_by[0] if made_by[1:2] == ["process"] else None


def machine() -> str:
    """Returns a name for what shares its process numbers: host and, in a container, process namespace."""
    namespace = Path("/proc/self/ns/pid")
    inode = namespace.stat().st_ino if namespace.exists() else 0
    return hashlib.sha256(f"{socket.gethostname()} {inode}".encode()).hexdigest()[:8]


def why_locks_are_local(folder: Path) -> str | None:
    """Returns why locks in a folder do not reach other machines, None where nothing is known that says so."""
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
        handle = open(lock, "a+", encoding="utf-8")
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


def _is_named(handle: IO[str], path: Path) -> bool:
    """Tells whether an open file still has its name: its last holder removed it, perhaps, just before."""
    try:
        named = path.stat()
    except FileNotFoundError:
        return False
    opened = os.fstat(handle.fileno())
    return (named.st_dev, named.st_ino) == (opened.st_dev, opened.st_ino)


def _lock(handle: IO[bytes] | IO[str]) -> bool | None:
    """Takes a lock; False where another process has it, None where the file system has no locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # ENOLCK, ENOSYS, EOPNOTSUPP, EINVAL: by the file system
        return None
    return True


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        pass
    return True


def _mount(folder: Path) -> tuple[str, str, str] | None:
    """Returns mount point, kind and options of the file system of a folder, as Linux tells them."""
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
