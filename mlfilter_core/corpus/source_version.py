"""Whether a source file changes while it is read."""

import os
from pathlib import Path

from mlfilter_core.corpus.sources import Source
from mlfilter_core.errors import SourceError
from mlfilter_core.files.identity import file_sha256
from mlfilter_core.files.task_files import WHOLE, Part


class SourceVersion:
    """A source file as it is before it is opened."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._before: os.stat_result | None = path.stat()
        except OSError:  # the reader's error says more
            self._before = None

    def check(self, reader: Source, part: Part = WHOLE) -> os.stat_result:
        """Returns the status of the file, once its reader has read it, or this part of it, to the end.

        Raises:
            SourceError: The file was changed, replaced or removed meanwhile.
        """
        try:
            after = self._path.stat()
            is_same = self._is_same(after, reader, part)
        except FileNotFoundError:
            raise SourceError(f"{self._path} was removed while it was read; run again when it is back") from None
        if not is_same:
            raise SourceError(f"{self._path} changed while it was read; run again when it is complete")
        return after

    def _is_same(self, after: os.stat_result, reader: Source, part: Part) -> bool:
        before = self._before
        if before is None or before.st_size != after.st_size:
            return False
        if part.is_last and reader.n_bytes != after.st_size:
            return False
        if after.st_mtime_ns != before.st_mtime_ns:
            return False
        # A replacement of the same size and time has another inode. A change that was given the old time again has
        # another time of status change. So does a mere `chmod`, and there the content decides.
        if (after.st_dev, after.st_ino, after.st_ctime_ns) == (before.st_dev, before.st_ino, before.st_ctime_ns):
            return True
        return part == WHOLE and file_sha256(self._path) == reader.sha256
