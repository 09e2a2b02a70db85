"""A ledger of finished files, so that a later run need not open what they were made to.

A folder of segments, one for each process that wrote; later lines replace earlier ones of the same name. A ledger is
never the truth. An entry counts as long as every file that it names has the size and times that it states; for anything
else, and for a ledger that is missing, incomplete or corrupted, the files themselves are read.

A line: CRC-32 of what follows, in 8 hexadecimal digits, a space, and the entry as a JSON array.
"""

import logging
import os
import re
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

from mlfilter_core.files.claims import hold, is_abandoned, machine, remove_if_abandoned
from mlfilter_core.files.new_file import open_new
from mlfilter_core.files.publishing import publish

SUFFIX = ".ledger"
SEGMENT = re.compile(r"\d+\.([0-9a-f]{8})\.(\d+)\.[0-9a-f]{8}\.ledger")  # moment, machine, process, random
MOST_SEGMENTS = 8  # before they are merged; arbitrary
MOST_READ = 64  # the newest; each is an open file. Where no other machine's locks are seen, segments stay
OFFSET_BITS = 48
FLUSH_S = 1.0
CRC_BYTES = 9  # with the space
# Bytes of a file, and the times of the last changes of its content and of its inode, in ns since 1970. The latter tells
# what was written or replaced with the time of another file.
Version = tuple[int, int, int]
Versions = tuple[Version | None, ...]  # None for a file that does not exist

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


def versions_of(paths: Iterable[Path | str]) -> Versions:
    """Returns the versions of files.

    Raises:
        OSError: One cannot be looked up for another reason than that it does not exist.
    """
    return tuple(map(_version, paths))


def known_versions(paths: Iterable[Path | str]) -> Versions:
    """Returns the versions of files; empty where one cannot be looked up."""
    try:
        return versions_of(paths)
    except OSError:
        return ()


class _Closing:
    """What is closed at the end of a `with` block."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        raise NotImplementedError


class LedgerSegment(_Closing):
    """The entries that one process adds to a ledger."""

    def __init__(self, folder: Path) -> None:
        """Takes the folder of the ledger, which need not exist."""
        self._folder = folder
        self._file: IO[bytes] | None = None
        self._is_silent = False
        self._flushed = time.monotonic()

    def add(self, entry: Entry) -> None:
        """Writes an entry. If that fails, as on a full disk, a warning says so once, and nothing more is written."""
        if self._is_silent:
            return
        try:
            if self._file is None:
                self._folder.mkdir(parents=True, exist_ok=True)
                self._file = open(self._folder / _new_name(f"{time.time_ns():020}"), "xb")
                hold(self._file)
            self._file.write(_line(entry))
            if time.monotonic() - self._flushed > FLUSH_S:
                self._file.flush()
                self._flushed = time.monotonic()
        except OSError as error:
            self._is_silent = True
            _log.warning("%s cannot be written (%s): the next run reads its finished files again", self._folder, error)

    def flush(self) -> None:
        """Writes what was added."""
        with suppress(OSError):
            if self._file is not None:
                self._file.flush()

    def close(self) -> None:
        """Closes the file; what was added is then written."""
        with suppress(OSError):
            if self._file is not None:
                self._file.close()


class Ledger(_Closing):
    """The ledger of a folder, as it was when it was opened; new entries are written, and not found again."""

    def __init__(self, folder: Path) -> None:
        """Opens a ledger, which need not exist. What cannot be read is left out."""
        self._folder = folder
        self._segments: list[IO[bytes]] = []
        self._read: list[int] = []  # bytes of each
        self._new = LedgerSegment(folder)
        hashes, places = array("q"), array("Q")
        for path in self._paths()[-MOST_READ:]:
            with suppress(OSError):
                segment = open(path, "rb")
                self._segments.append(segment)
                for offset, entry in _entries(segment):
                    hashes.append(hash(entry.name))
                    places.append(len(self._segments) - 1 << OFFSET_BITS | offset)
                self._read.append(segment.tell())
        order = np.argsort(np.frombuffer(hashes, np.int64), kind="stable")
        self._hashes: NDArray[np.int64] = np.frombuffer(hashes, np.int64)[order]
        self._places: NDArray[np.uint64] = np.frombuffer(places, np.uint64)[order]

    def __len__(self) -> int:
        """Returns the number of lines, also of those that later ones replace."""
        return len(self._hashes)

    def find(self, name: str) -> Entry | None:
        """Returns the last entry of a file; None where there is none, or its line is no longer readable."""
        last = int(np.searchsorted(self._hashes, hash(name), side="right")) - 1
        if last < 0 or self._hashes[last] != hash(name):
            return None
        try:
            entry = _parsed(self._line_at(int(self._places[last])))
        except OSError:
            return None
        return entry if entry is not None and entry.name == name else None

    def add(self, entry: Entry) -> None:
        """Writes an entry, as `LedgerSegment.add`."""
        self._new.add(entry)

    def merge(self) -> None:
        """Merges the segments of ended processes into one where there are many; those of living ones stay."""
        merged = [place for place in range(len(self._read)) if self._has_ended(place)]
        if len(merged) <= MOST_SEGMENTS:
            return
        is_merged = np.isin(self._places >> np.uint64(OFFSET_BITS), np.array(merged, np.uint64))
        hashes, places = self._hashes[is_merged], self._places[is_merged]
        is_last = np.ones(len(hashes), np.bool_)
        is_last[:-1] = np.diff(hashes) != 0
        paths = [Path(self._segments[place].name) for place in merged]
        # In the place of the newest of them, as entries that were written meanwhile are newer.
        target = self._folder / _new_name(paths[-1].name.partition(".")[0])
        with suppress(OSError):  # the segments stay, and serve as well
            with publish(target) as temporary, open_new(temporary) as file:
                for i in np.sort(places[is_last]):
                    file.write(self._line_at(int(i)))
            for path in paths:
                remove_if_abandoned(path, *_writer(path))

    def flush(self) -> None:
        """Writes what was added."""
        self._new.flush()

    def close(self) -> None:
        """Closes the files; what was added is then written."""
        self._new.close()
        for file in self._segments:
            with suppress(OSError):
                file.close()

    def _has_ended(self, place: int) -> bool:
        """Returns whether the writer of a segment has ended, and wrote no more than was read."""
        path = Path(self._segments[place].name)
        try:
            was_read = path.stat().st_size == self._read[place]
            return was_read and SEGMENT.fullmatch(path.name) is not None and is_abandoned(path, *_writer(path))
        except OSError:
            return False

    def _line_at(self, place: int) -> bytes:
        segment, offset = divmod(place, 1 << OFFSET_BITS)
        self._segments[segment].seek(offset)
        return self._segments[segment].readline()

    def _paths(self) -> list[Path]:
        try:
            return sorted(path for path in self._folder.iterdir() if path.suffix == SUFFIX)
        except OSError:
            return []


def _version(path: Path | str) -> Version | None:
    try:
        status = os.stat(path)  # noqa: PTH116, of millions of files; a Path takes twice as long
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _new_name(moment: str) -> str:
    return f"{moment}.{machine()}.{os.getpid()}.{uuid.uuid4().hex[:8]}{SUFFIX}"


def _writer(segment: Path) -> tuple[str, int]:
    """Returns machine and process of the writer of a segment."""
    _, made_on, process, _, _ = segment.name.split(".")
    return made_on, int(process)


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


def _three(n_bytes: int, mtime_ns: int, ctime_ns: int) -> Version:
    return n_bytes, mtime_ns, ctime_ns


def _parsed(line: bytes) -> Entry | None:
    """Returns the entry of a line; None where it is incomplete, corrupted, or of another release."""
    content = line[CRC_BYTES:-1]
    try:
        if line[-1:] != b"\n" or int(line[: CRC_BYTES - 1], 16) != crc32(content):
            return None
        name, request, versions, facts = orjson.loads(content)
        return Entry(name, request, tuple(version and _three(*version) for version in versions), facts)
    except (ValueError, TypeError, IndexError):
        return None
