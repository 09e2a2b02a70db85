"""New files: write errors contain the file's name, and a digest can be computed during writing."""

import hashlib
import io
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from mlfilter_core.files.identity import file_identity

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


# Each write of a file is a call of Python, and of the digest. Arbitrary: large enough that neither shows in a profile.
WRITE_BYTES = 1 << 18


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Adds the file's name to an error of writing to an open file; the system leaves it out."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def open_new(path: Path) -> IO[bytes]:
    """Opens an empty file for writing; errors of writing name it."""
    return io.BufferedWriter(_NamedFile(path, "wb"), WRITE_BYTES)


def append_file(target: IO[bytes], path: Path) -> None:
    """Adds the content of a file to an open one."""
    with open(path, "rb") as file:
        shutil.copyfileobj(file, target)


class HashedFile(io.BufferedWriter):
    """A file as opened by `open_new`, which computes the digest of its content during writing."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._sha256 = hashlib.sha256()
        super().__init__(_HashingFile(path, self._sha256), WRITE_BYTES)

    def identity(self) -> dict[str, Any]:
        """Returns the `file_identity` of the file, which must be closed, without reading it."""
        assert self.closed
        return file_identity(self._path, self._sha256.hexdigest())


class _NamedFile(io.FileIO):
    def write(self, content: "ReadableBuffer", /) -> int:
        with naming(Path(os.fsdecode(self.name))):
            return super().write(content)


class _HashingFile(_NamedFile):
    def __init__(self, path: Path, sha256: "hashlib._Hash") -> None:
        super().__init__(path, "wb")
        self._sha256 = sha256

    def write(self, content: "ReadableBuffer", /) -> int:
        n_written = super().write(content)
        self._sha256.update(memoryview(content)[:n_written])
        return n_written

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        raise io.UnsupportedOperation("a file whose digest is computed is written from start to end")
