"""Where the database of a run's own Prefect server can be: in a private folder, with locks and room."""

import atexit
import fcntl
import functools
import os
import shutil
import sys
import tempfile
from pathlib import Path

from mlfilter_core.errors import MlfilterError
from mlfilter_core.files.disk_space import free_space
from mlfilter_core.wording import sizes_apart

# SQLite's log takes 4 MiB before it is emptied, a database with the tasks of a thousand files about as much.
LEAST_ROOM_BYTES = 16 << 20


class DatabaseError(MlfilterError):
    """The database of the temporary Prefect server cannot be written, and will not heal by itself."""

    def __init__(self, folder: Path, problem: str) -> None:
        super().__init__(
            f"Prefect's database in {folder} cannot be written: {problem}. Make room there, or set logging_dir (in "
            "local_settings or slurm_settings) to a folder on another disk. Finished files are kept, and a rerun "
            "continues"
        )


def usable_folder(folder: Path) -> Path:
    """Creates a folder that only this user can read; returns a temporary one, and says so, if it cannot serve.

    The temporary folder is removed when this process ends. SQLite on a disk without locks waits for them for minutes.

    Raises:
        DatabaseError: Neither can be used.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    why = _why_unusable(folder)
    if why is None:
        folder.chmod(0o700)  # made by an older version
        return folder
    try:
        other = _temporary_folder()
    except OSError as error:  # its text names the folders
        raise DatabaseError(folder, f"it {why}, and no temporary folder can be made instead ({error})") from error
    print(
        f"warning: {folder} {why}; Prefect's records of this run are in {other} and are removed at its end. To keep "
        "them, set logging_dir to a folder on another disk, or PREFECT_API_URL to a server",
        file=sys.stderr,
    )
    return other


def check_room(folder: Path) -> None:
    """Checks that a database in a folder can grow.

    Raises:
        DatabaseError: The disk is nearly full.
    """
    n_free = free_space(folder).free_bytes
    if n_free < LEAST_ROOM_BYTES:
        needed, free = sizes_apart(LEAST_ROOM_BYTES, n_free)
        raise DatabaseError(folder, f"at least {needed} are needed, and {free} are free")


def _why_unusable(folder: Path) -> str | None:
    """Returns why this user cannot keep a database in a folder."""
    if folder.stat().st_uid != os.geteuid():
        return "belongs to another user"
    probe = folder / f".{os.getpid()}.locks"
    try:
        with open(probe, "wb") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # those of SQLite
    except OSError as error:
        return f"cannot hold a database, which needs locks ({error.strerror})"
    finally:
        probe.unlink(missing_ok=True)
    return None


@functools.cache
def _temporary_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="mlfilter-prefect-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
