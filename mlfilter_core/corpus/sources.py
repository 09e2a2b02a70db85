"""A source file of any format as records, each with a position that finds it again.

Everything that reads sources opens them here. A new format is one module and one row of `FORMATS`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mlfilter_core.corpus.compression import HEAD_BYTES
from mlfilter_core.corpus.documents import RecordKeys
from mlfilter_core.corpus.lines import Line, OverlongLine, SourceReader, open_regular_file


class Source(Protocol):
    """An open source file, read once, from the first record to the last. Use it as a context manager."""

    @property
    def path(self) -> Path:
        """The file."""

    @property
    def n_lines(self) -> int:
        """Records read so far, with blank lines and those that are not documents."""

    @property
    def n_bytes(self) -> int:
        """Bytes on disk read so far; the file's size once `lines` is exhausted."""

    @property
    def sha256(self) -> str:
        """Digest of the whole file, as `sha256sum` prints it, once `lines` is exhausted."""

    @property
    def keys(self) -> Sequence[str] | None:
        """Keys of the records, wanted or not; None for a format that does not state them."""

    @property
    def is_columnar(self) -> bool:
        """Whether records have only the wanted keys, so that their length depends on what is wanted."""

    def lines(self, max_line_bytes: int) -> Iterator[Line | OverlongLine]:
        """Yields each record as one line of JSON.

        Numbers count from 1. Offsets ascend, and are the same each time the file is read, whichever keys are wanted.

        Raises:
            SourceError: The file is broken; names the place where reading stops.
        """

    def __enter__(self) -> "Source": ...

    def __exit__(self, *exc_info: object) -> None: ...


@dataclass(frozen=True)
class Format:
    """A format of source files.

    Attributes:
        name: Name for messages.
        is_in: Returns whether a file with these first `HEAD_BYTES` has this format.
        open: Opens a file, to read the keys, or all keys for None.
    """

    name: str
    is_in: Callable[[bytes], bool]
    open: Callable[[Path, RecordKeys | None], Source]


# The first that fits is taken.
FORMATS = (Format("JSON lines", lambda head: True, lambda path, keys: SourceReader(path)),)


def open_source(path: Path, keys: RecordKeys | None = None) -> Source:
    """Opens a source file, whose first bytes determine the format.

    Args:
        path: The file.
        keys: Keys to read; None for all. A format that reads whole records gives all of them anyway.

    Raises:
        SourceError: The file is missing, not readable, not a regular file, of no format that is read, or lacks a
            required key.
    """
    with open_regular_file(path) as file:
        head = file.read(HEAD_BYTES)
    return next(each for each in FORMATS if each.is_in(head)).open(path, keys)
