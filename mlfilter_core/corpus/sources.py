"""A source file of any format as records, each with a position that finds it again.

Everything that reads sources opens them here. A new format is one module and one row of `FORMATS`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mlfilter_core.corpus import foreign_formats
from mlfilter_core.corpus.compression import COMPRESSIONS, HEAD_BYTES
from mlfilter_core.corpus.documents import RecordKeys
from mlfilter_core.corpus.foreign_formats import describe_unknown, foreign_format
from mlfilter_core.corpus.hive_tables import partition_values
from mlfilter_core.corpus.lines import Line, OverlongLine, SourceReader, open_regular_file
from mlfilter_core.corpus.parquet_source import ENCRYPTED_MAGIC, MAGIC, PARQUET_SUFFIX, ParquetSource
from mlfilter_core.corpus.source_text import UTF8_BOM
from mlfilter_core.errors import SourceError
from mlfilter_core.files.task_files import WHOLE, Part


class Source(Protocol):
    """An open source file, read once, from the first record to the last. Use it as a context manager."""

    @property
    def path(self) -> Path:
        """The file."""

    @property
    def n_lines(self) -> int:
        """Records up to the last one read, with blank lines and those that are not documents."""

    @property
    def n_skipped(self) -> int:
        """Records before the part that is read, or that were passed over; 0 for a whole file."""

    @property
    def n_bytes(self) -> int:
        """Bytes on disk read so far; the file's size once `lines` of it or its last part is exhausted."""

    @property
    def sha256(self) -> str:
        """Digest of the whole file, as `sha256sum` prints it, once `lines` of it or its last part is exhausted."""

    @property
    def most_parts(self) -> int:
        """Most parts into which the file can usefully be divided."""

    @property
    def keys(self) -> Sequence[str] | None:
        """Keys of the records, wanted or not; None for a format that does not state them."""

    @property
    def is_columnar(self) -> bool:
        """Whether records have only the wanted keys, so that their length depends on what is wanted."""

    def skip(self, offset: int) -> None:
        """Passes over records before an offset of `lines`, as far as that is faster than to read them.

        To be called before `lines`, which then begins there, or earlier.

        Args:
            offset: Offset of a record.

        Raises:
            SourceError: As `lines`.
        """

    def lines(self, max_line_bytes: int, part: Part = WHOLE) -> Iterator[Line | OverlongLine]:
        """Yields each record of the file, or of a part of it, as one line of JSON.

        Numbers count from 1 at the start of the file. Offsets ascend, and are the same each time the file is read,
        whichever keys are wanted. Each record is in exactly one of the parts of a number; a part may be empty.

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
        open: Opens a file, to read the keys, or all keys for None; the last argument are values of partition keys.
    """

    name: str
    is_in: Callable[[bytes], bool]
    open: Callable[[Path, RecordKeys | None, Mapping[str, str | None]], Source]


def _open_lines(path: Path, keys: RecordKeys | None, partitions: Mapping[str, str | None]) -> Source:
    """Opens JSON lines, or what may be: a file of any other content would be rejected line by line.

    Lines stay as they are, without values of the folders.
    """
    reader = SourceReader(path)
    try:
        head = reader.head(foreign_formats.HEAD_BYTES)
        if (foreign := foreign_format(head)) is not None:
            raise SourceError(f"{path} is {foreign.name}, which is not read; {foreign.fix}. {what_is_read()}")
        if path.name.endswith(PARQUET_SUFFIX) and not _begins_as_record(head):
            raise SourceError(f"{path} does not begin as a Parquet file ({head[:4]!r}); download or write it again")
    except BaseException:
        reader.__exit__()
        raise
    return reader


def _begins_as_record(head: bytes) -> bool:
    return head.removeprefix(UTF8_BOM).lstrip().startswith(b"{")


LINES = Format("JSON lines", lambda head: True, _open_lines)
FORMATS = (  # the first that fits is taken
    Format("Parquet", lambda head: head.startswith((MAGIC, ENCRYPTED_MAGIC)), ParquetSource),
    LINES,
)


def format_of(head: bytes) -> Format:
    """Returns the format of a file with these first `HEAD_BYTES`."""
    return next(each for each in FORMATS if each.is_in(head))


def unread_content(path: Path) -> str | None:
    """Returns what a file is instead of a source, for messages; None for a source, and for what cannot be read at all.

    Stricter than `open_source`: the first line must begin as a record.
    """
    try:
        with open_regular_file(path) as file:
            head = file.read(HEAD_BYTES)
        if format_of(head) is not LINES:
            return None
        with SourceReader(path) as reader:
            head = reader.head(foreign_formats.HEAD_BYTES)
    except (SourceError, OSError):  # its task reports it
        return None
    is_source = foreign_format(head) is None and (_begins_as_record(head) or not head.strip())
    return None if is_source else describe_unknown(head)


def what_is_read() -> str:
    """Returns the formats that are read, as a sentence."""
    compressed = ", ".join(each.name for each in COMPRESSIONS)
    names = " and ".join(each.name for each in FORMATS)
    return f"Sources are {names}; JSON lines may be compressed ({compressed})"


def open_source(path: Path, keys: RecordKeys | None = None, relative: str = "") -> Source:
    """Opens a source file, whose first bytes determine the format.

    Args:
        path: The file.
        keys: Keys to read; None for all. A format that reads whole records gives all of them anyway.
        relative: Path below the folder of the corpus. Its folders `key=value` are columns of Parquet.

    Raises:
        SourceError: The file is missing, not readable, not a regular file, of no format that is read, or lacks a
            required key.
    """
    with open_regular_file(path) as file:
        head = file.read(HEAD_BYTES)
    return format_of(head).open(path, keys, partition_values(relative))
