"""Whether a file still has the content that it had before."""

import functools
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def file_sha256(path: Path) -> str:
    """Returns the digest of the bytes on disk, as `sha256sum` prints it."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cached_sha256(path: Path) -> str:
    """Returns `file_sha256`, but reads the file only once in a process unless it has changed.

    For weights, which take minutes to read and several steps of a run ask for. A file whose inode, size and times are
    the same counts as unchanged.
    """
    with open(path, "rb") as file:  # a network file system may answer `stat` from its cache, but not `open`
        status = os.fstat(file.fileno())
    return _sha256_of(path, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@functools.cache
def _sha256_of(path: Path, *version: int) -> str:
    return file_sha256(path)


def file_identity(path: Path, sha256: str | None = None) -> dict[str, Any]:
    """Returns what `is_same_file` needs: `bytes`, `mtime_ns` and `sha256`.

    Args:
        path: An existing file.
        sha256: Digest of its content, where that is known; otherwise the file is read.
    """
    status = path.stat()
    return {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns, "sha256": sha256 or file_sha256(path)}


def is_same_file(path: Path, recorded: Mapping[str, Any], read_content: bool) -> bool | None:
    """Returns whether a file has the content that was recorded.

    Size and modification time decide where they can. The content decides for a file that was copied or touched.

    Args:
        path: An existing file.
        recorded: Result of `file_identity`.
        read_content: Whether to read the file where size and time do not decide.

    Returns:
        None where only the content decides and `read_content` is false.
    """
    status = path.stat()
    if status.st_size != recorded["bytes"]:
        return False
    if status.st_mtime_ns == recorded["mtime_ns"]:
        return True
    return file_sha256(path) == recorded["sha256"] if read_content else None
