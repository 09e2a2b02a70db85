"""A ledger of finished files, so that a later run need not open what they were made to.

A folder of segments, one for each process that wrote; later lines replace earlier ones of the same name. A ledger is
never the truth. An entry counts as long as every file that it names has the size and time that it states; for anything
else, and for a ledger that is missing, incomplete or corrupted, the files themselves are read.

A line: CRC-32 of what follows, in 8 hexadecimal digits, a space, and the entry as a JSON array.
"""

import logging
import os
import time
import uuid
from array import array
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self
from zlib import crc32

import numpy as np
import orjson
from numpy.typing import NDArray

from mlfilter_core.files.claims import hold, machine, remove_if_abandoned
from mlfilter_core.files.new_file import open_new
from mlfilter_core.files.publishing import publish

SUFFIX = ".ledger"
MOST_SEGMENTS = 8  # before they are merged; arbitrary: opening a folder of hundreds of files takes a second
FLUSH_S = 1.0
CRC_BYTES = 9  # with the space
# Bytes and modification time in nanoseconds since 1970 of each file, None for one that does not exist.
Versions = tuple[tuple[int, int] | None, ...]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """What is known of a finished file.

    Attributes:
        name: Name of the file.
        request: Digest of the request that its outputs were made by.
        versions: Versions of the file and its outputs.
        facts: Facts of its report.
    """

    name: str
    request: str
    versions: Versions
    facts: dict[str, Any]


def versions_of(paths: Iterable[Path]) -> Versions:
    """Returns the versions of files.

    Raises:
        OSError: One cannot be looked up for another reason than that it does not exist.
    """
    return tuple(map(_version, paths))


class Ledger:
    """The ledger of a folder, as it was when it was opened; new entries are written, and not found again."""

    def __init__(self, folder: Path) -> None:
        """Opens a ledger, which need not exist. What cannot be read is left out."""
        self._folder = folder
        self._segments: list[IO[bytes]] = []
        self._new: IO[bytes] | None = None
        self._is_silent = False
        self._flushed = time.monotonic()
        hashes, places = array("q"), array("Q")
        for path in self._paths():
            with suppress(OSError):
                segment = open(path, "rb")
                self._segments.append(segment)
                for offset, entry in _entries(segment):
                    hashes.append(hash(entry.name))
                    places.append(len(self._segments) - 1 << 48 | offset)
        order = np.argsort(np.frombuffer(hashes, np.int64), kind="stable")
        self._hashes: NDArray[np.int64] = np.frombuffer(hashes, np.int64)[order]
        self._places: NDArray[np.uint64] = np.frombuffer(places, np.uint64)[order]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        """Returns the number of lines, also of those that later ones replace."""
        return len(self._hashes)

    def find(self, name: str) -> Entry | None:
        """Returns the last entry of a file; None where there is none, or its line is no longer readable."""
        last = int(np.searchsorted(self._hashes, hash(name), side="right")) - 1
        if last < 0 or self._hashes[last] != hash(name):
            return None
        segment, offset = divmod(int(self._places[last]), 1 << 48)
        try:
            self._segments[segment].seek(offset)
            entry = _parsed(self._segments[segment].readline())
        except OSError:
            return None
        return entry if entry is not None and entry.name == name else None

    def add(self, entry: Entry) -> None:
        """Writes an entry. If that fails, as on a full disk, a warning says so once, and nothing more is written."""
        if self._is_silent:
            return
        try:
            if self._new is None:
                self._folder.mkdir(parents=True, exist_ok=True)
                self._new = open(self._folder / _new_name(), "xb")
                hold(self._new)
            self._new.write(_line(entry))
            if time.monotonic() - self._flushed > FLUSH_S:
                self._new.flush()
                self._flushed = time.monotonic()
        except OSError as error:
            self._is_silent = True
            _log.warning("%s cannot be written (%s): the next run reads its finished files again", self._folder, error)

    def merge(self) -> None:
        """Merges the segments into one where there are many; those of living processes stay."""
        paths = self._paths()
        if len(paths) <= MOST_SEGMENTS:
            return
        with suppress(OSError):  # the segments stay, and serve as well
            target = self._folder / _new_name()
            with publish(target) as temporary, open_new(temporary) as file:
                for i in np.sort(self._places[_last_of_each(self._hashes)]):
                    segment, offset = divmod(int(i), 1 << 48)
                    self._segments[segment].seek(offset)
                    file.write(self._segments[segment].readline())
            read = {Path(segment.name) for segment in self._segments}
            for path in paths:
                if path in read:
                    made_on, process = path.name.split(".")[1:3]
                    remove_if_abandoned(path, made_on, int(process))

    def flush(self) -> None:
        """Writes what was added."""
        with suppress(OSError):
            if self._new is not None:
                self._new.flush()

    def close(self) -> None:
        """Closes the files; what was added is then written."""
        for file in (*self._segments, *([self._new] if self._new else [])):
            with suppress(OSError):
                file.close()

    def _paths(self) -> list[Path]:
        try:
            return sorted(path for path in self._folder.iterdir() if path.suffix == SUFFIX)
        except OSError:
            return []


def _version(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_size, status.st_mtime_ns


def _new_name() -> str:
    """Returns a name after those of earlier segments."""
    return f"{time.time_ns():020}.{machine()}.{os.getpid()}.{uuid.uuid4().hex[:8]}{SUFFIX}"


def _last_of_each(hashes: NDArray[np.int64]) -> NDArray[np.bool_]:
    return np.append(np.diff(hashes) != 0, [True] * bool(len(hashes)))


def _entries(segment: IO[bytes]) -> Iterator[tuple[int, Entry]]:
    """Yields the readable entries of a segment, with the place of each."""
    offset = 0
    for line in segment:
        if (entry := _parsed(line)) is not None:
            yield offset, entry
        offset += len(line)


def _line(entry: Entry) -> bytes:
    content = orjson.dumps([entry.name, entry.request, entry.versions, entry.facts])
    return b"%08x %b\n" % (crc32(content), content)


def _parsed(line: bytes) -> Entry | None:
    """Returns the entry of a line; None where it is incomplete, corrupted, or of another release."""
    content = line[CRC_BYTES:-1]
    try:
        if line[-1:] != b"\n" or int(line[: CRC_BYTES - 1], 16) != crc32(content):
            return None
        name, request, versions, facts = orjson.loads(content)
        return Entry(name, request, tuple(version and (version[0], version[1]) for version in versions), facts)
    except (ValueError, TypeError, IndexError):
        return None
