"""Checks of an output folder before a run: free space and permissions. They create nothing that stays."""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from mlfilter_core.errors import ConfigError
from mlfilter_core.wording import sizes_apart


@dataclass(frozen=True)
class FreeSpace:
    """Free space of a file system. A quota may leave less.

    Attributes:
        folder: Existing folder on it.
        free_bytes: Free bytes for users other than root.
        free_files: Files that can still be created; None where the file system has no such limit.
    """

    folder: Path
    free_bytes: int
    free_files: int | None


def free_space(folder: Path) -> FreeSpace:
    """Returns the free space where a folder is or will be.

    Raises:
        OSError: The file system does not report it.
    """
    existing = nearest_folder(folder)
    status = os.statvfs(existing)
    return FreeSpace(existing, status.f_bavail * status.f_frsize, status.f_favail if status.f_files else None)


def nearest_folder(folder: Path) -> Path:
    """Returns the folder, or its nearest parent that exists."""
    path = folder.absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def check_would_be_writable(folder: Path, field: str) -> None:
    """Checks that a folder could be created and written to.

    Args:
        folder: The folder.
        field: Job field that names it, for the message.

    Raises:
        ConfigError: It could not.
    """
    existing = nearest_folder(folder)
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise ConfigError(
            f"{field}: {folder} cannot be written to ({existing}: {error.strerror}); fix its permissions or give "
            "another"
        ) from error


def check_room_for(folder: Path, n_bytes: float, field: str = "params.output_dir") -> None:
    """Checks that a folder has room for a minimum size of the outputs.

    Args:
        folder: Folder of the outputs.
        n_bytes: Least bytes that will be written.
        field: Job field that names the folder, for the message.

    Raises:
        ConfigError: There is too little room.
    """
    try:
        space = free_space(folder)
    except OSError:  # unknown; writing reports what is wrong
        return
    if n_bytes > space.free_bytes:
        needed, free = sizes_apart(n_bytes, space.free_bytes)
        raise ConfigError(
            f"{field}: at least {needed} are needed in {folder}, and {free} are free; make room, or give another folder"
        )
