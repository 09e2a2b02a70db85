"""A file that appears complete or not at all."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlfilter_core.errors import ConfigError

TEMPORARY_SUFFIX = ".part"


@contextmanager
def publish(target: Path) -> Iterator[Path]:
    """Gives a temporary path beside `target` that becomes `target` when the block ends well.

    The content is on disk (fsync of the file and of its folder) before `target` names it. When the
    block raises, the temporary file is removed and `target` is as it was. Missing folders are made.

    Yields:
        An existing, empty file with a unique name: `.<name>.<random>.part`.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    # A name holds 255 bytes at most, and a character up to four of them.
    temporary = target.parent / f".{target.name[:40]}.{uuid.uuid4().hex}{TEMPORARY_SUFFIX}"
    temporary.touch(exist_ok=False)
    try:
        yield temporary
        _fsync(temporary)
        os.replace(temporary, target)
        _fsync(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(folder: Path) -> None:
    """Makes an output folder and proves that files can be made in it.

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
            f"params.output_dir: {folder} cannot be written to ({error.strerror}); mend its permissions or give another"
        ) from error


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
