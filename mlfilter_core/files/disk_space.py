"""Whether a folder that is to be written to has room, and lets one in.

Leaves nothing behind: neither the folder nor a file in it.
"""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from mlfilter_core.errors import ConfigError
from mlfilter_core.wording import size


@dataclass(frozen=True)
class FreeSpace:
    """What is left of a file system. A quota may leave less.

    Attributes:
        folder: By which it was asked.
        free_bytes: For users other than root.
        free_files: That can be made; None where the file system knows no such limit.
    """

    folder: Path
    free_bytes: int
    free_files: int | None


def free_space(folder: Path) -> FreeSpace:
    """Returns what is left where a folder is or will be.

    Raises:
        OSError: The file system does not answer.
    """
    existing = nearest_folder(folder)
    status = os.statvfs(existing)
    return FreeSpace(existing, status.f_bavail * status.f_frsize, status.f_favail if status.f_files else None)


def nearest_folder(folder: Path) -> Path:
    """Returns the folder, or the nearest one above it that exists."""
    path = folder.absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def check_would_be_writable(folder: Path, field: str) -> None:
    """Proves that a folder could be made and written to.

    Args:
        folder: The folder.
        field: Where a job names it, for the message.

    Raises:
        ConfigError: It could not.
    """
    existing = nearest_folder(folder)
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise ConfigError(
            f"{field}: {folder} cannot be written to ({existing}: {error.strerror}); mend its permissions or give "
            "another"
        ) from error


def check_room_for(folder: Path, n_bytes: float, field: str = "params.output_dir") -> None:
    """Checks that there is room for the least that will be written.

    Args:
        folder: That is written to.
        n_bytes: At least.
        field: Where a job names it, for the message.

    Raises:
        ConfigError: There is not.
    """
    try:
        space = free_space(folder)
    except OSError:  # of what cannot be known, the writing says more
        return
    if n_bytes > space.free_bytes:
        raise ConfigError(
            f"{field}: at least {size(n_bytes)} are needed in {folder}, and {size(space.free_bytes)} are free; make "
            "room, or give another folder"
        )
