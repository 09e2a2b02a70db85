"""A file for HDF5 to write to, whose failures reach the writer and not HDF5."""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlfilter_core.files.new_file import naming


class CarefulDisk(io.RawIOBase):
    """A file object that records the first failure and hides it from HDF5.

    When a dataset is closed, HDF5 silently drops what it failed to write. When a file on a full disk is closed, it
    crashes with a segmentation fault (HDF5 2.0, with h5py's own driver). After the first failure this file therefore
    keeps what HDF5 writes in memory. That is no more than the caches of HDF5, as the writer stops.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = open(path, "w+b", buffering=0)
        self._position = 0
        self._error: OSError | None = None
        self._unwritten: list[tuple[int, bytes]] = []

    def check(self) -> None:
        """Raises the first failure, if there was one."""
        if self._error is not None:
            raise self._error

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence == os.SEEK_END:
            on_disk = os.fstat(self._file.fileno()).st_size
            offset += max([on_disk, *(start + len(piece) for start, piece in self._unwritten)])
        self._position = offset + (self._position if whence == os.SEEK_CUR else 0)
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fills the whole buffer, with zeros where nothing was written."""
        begin, end = self._position, self._position + len(buffer)
        content = bytearray(len(buffer))
        with self._keeping_error():
            on_disk = os.pread(self._file.fileno(), len(buffer), begin)
            content[: len(on_disk)] = on_disk
        for start, piece in self._unwritten:
            first, last = max(start, begin), min(start + len(piece), end)
            if first < last:
                content[first - begin : last - begin] = piece[first - start : last - start]
        buffer[:] = content
        self._position = end
        return len(buffer)

    def write(self, content: memoryview) -> int:  # type: ignore[override]
        left = memoryview(content)
        with self._keeping_error():
            while left and self._error is None:
                n_bytes = os.pwrite(self._file.fileno(), left, self._position)
                self._position += n_bytes
                left = left[n_bytes:]
        if left:
            self._unwritten.append((self._position, bytes(left)))
            self._position += len(left)
        return len(content)

    def truncate(self, size: int | None = None) -> int:
        with self._keeping_error():
            self._file.truncate(size)
        return size or 0

    def close(self) -> None:
        with self._keeping_error():
            self._file.close()
        super().close()

    @contextmanager
    def _keeping_error(self) -> Iterator[None]:
        try:
            with naming(self._path):
                yield
        except OSError as error:
            self._error = self._error or error
