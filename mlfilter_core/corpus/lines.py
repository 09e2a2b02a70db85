"""A source file, plain or compressed, as numbered lines.

Knows nothing about JSON. A line ends with a line feed and nothing else, so that line numbers agree
with `sed -n 7p` and offsets with `tail -c +N`.
"""

import hashlib
import io
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from mlfilter_core.corpus.compression import HEAD_BYTES, BrokenStreamError, Compression, PromptReader, compression_of
from mlfilter_core.errors import SourceError
from mlfilter_core.files.task_files import WHOLE, Part

READ_BYTES = 1 << 20  # arbitrary: large enough that system calls do not show in a profile
COMPRESSED_BYTES = 1 << 17  # a part of a compressed file begins where one of these reads does
# A longer line is rejected. Arbitrary: a thousand times a long web page, and still small in memory.
DEFAULT_MAX_LINE_BYTES = 64 << 20
# A stream that expands more is a suspected decompression bomb: 100 GB of blank lines would keep a worker busy for
# hours. Web text is compressed 3 to 20 times, and gzip reaches 1030 at most. A small file may be all blank.
MAX_EXPANSION, FREE_BYTES = 200, 256 << 20
# With this number, counting the lines before each part takes as long as reading the file 32 times, or 8.
MOST_PARTS, MOST_COMPRESSED_PARTS = 64, 16
# Errors of opening that a retry does not fix.
LASTING_ERRORS = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)


class Line(NamedTuple):  # made in a third of the time of a frozen dataclass
    """One line of a source.

    Attributes:
        number: Line number, from 1.
        offset: Byte offset of its first byte in the decompressed source.
        content: Its bytes without the line feed.
    """

    number: int
    offset: int
    content: bytes


@dataclass(frozen=True, slots=True)
class OverlongLine:
    """A line above the limit, in pieces, so that memory never contains all of it.

    Attributes:
        number: Line number, from 1.
        offset: Byte offset of its first byte in the decompressed source.
        pieces: Its bytes without the line feed; read them before the next line.
    """

    number: int
    offset: int
    pieces: Iterator[bytes]


class SourceReader:
    """Reads one source file once, from the first byte to the last.

    The first bytes determine the compression, not the name. Memory does not depend on the size of the file. Use it as a
    context manager.

    Attributes:
        path: The file.
        n_lines: Lines up to the last one read.
        n_skipped: Lines before the part that is read.
        keys: None: the keys of a line are known when it is read.
        is_columnar: False: a line has all its keys, whichever are wanted.
    """

    keys: Sequence[str] | None = None
    is_columnar: bool = False

    def __init__(self, path: Path, has_digest: bool = True) -> None:
        """Opens the file.

        Args:
            path: The file.
            has_digest: Whether to compute `sha256`, which takes a third of the time that short lines are read in.

        Raises:
            SourceError: It is missing, not readable, or not a regular file.
        """
        self.path = path
        self._has_digest = has_digest
        self.n_lines = 0
        self.n_skipped = 0
        self._offset = 0
        file = open_regular_file(path)
        self._size = os.fstat(file.fileno()).st_size
        self._max_bytes = max(FREE_BYTES, MAX_EXPANSION * self._size)  # decompressed
        self._raw = _HashingReader(file)
        self._compression = compression_of(self._raw.head)
        self._stream = _decompressed(self._raw, self._compression)

    def __enter__(self) -> "SourceReader":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stream.close()
        self._raw.close()

    @property
    def n_bytes(self) -> int:
        """Bytes on disk read so far; the file's size once `lines` of it or its last part is exhausted."""
        return self._raw.n_bytes

    @property
    def sha256(self) -> str:
        """Digest of the whole file, as `sha256sum` prints it, once `lines` of it or its last part is exhausted."""
        return self._raw.digest.hexdigest()

    @property
    def most_parts(self) -> int:
        """Most parts into which the file can usefully be divided, as each part reads what precedes it."""
        return MOST_PARTS if self._compression is None else MOST_COMPRESSED_PARTS

    def head(self, n_bytes: int) -> bytes:
        """Returns the first decompressed bytes, this many where there are as many; what precedes a broken place.

        To be called before `lines`, which reads them again.
        """
        try:
            return self._stream.peek(n_bytes)[:n_bytes]
        except BrokenStreamError:  # reading reports it, with its place
            return b""

    def skip(self, offset: int) -> None:
        """Passes over the lines before an offset in the decompressed source, counting them; faster than `lines` does.

        To be called before `lines`, which then begins at the offset.

        Args:
            offset: Offset of a line's first byte.

        Raises:
            SourceError: As `lines`.
        """
        while self._offset < offset and (content := self._peek()):
            self._pass_over(content[: offset - self._offset])

    def lines(self, max_line_bytes: int, part: Part = WHOLE) -> Iterator[Line | OverlongLine]:
        """Yields every line of the file or a part of it in order; the last one needs no line feed.

        A compressed stream cannot be entered in the middle: what precedes the part is decompressed and passed over.

        Raises:
            SourceError: The compressed stream is broken, or expands to more than `MAX_EXPANSION` times its size
                and `FREE_BYTES`; names the line where it stops.
        """
        start, stop = part.bounds(self._size)
        self._raw.is_hashing = self._has_digest and part.is_last
        self._skip_to(start)
        while part.is_last or self._position() < stop:
            if part.is_last and max_line_bytes >= READ_BYTES:
                yield from self._buffered_lines()
            if not (content := self._read_piece(max_line_bytes + 1)):
                return
            self.n_lines += 1
            if content.endswith(b"\n") or len(content) <= max_line_bytes:
                yield Line(self.n_lines, self._offset, content.removesuffix(b"\n"))
                self._offset += len(content)
            else:
                pieces = self._pieces(content)
                yield OverlongLine(self.n_lines, self._offset, pieces)
                for _ in pieces:  # what the consumer did not read
                    pass

    def _buffered_lines(self) -> Iterator[Line]:
        """Yields the lines that end in the buffer, which is filled if it is empty; faster than to read one by one."""
        content = self._peek()
        end = content.rfind(b"\n")
        if end < 0:
            return
        self._stream.read(end + 1)
        for line in content[:end].split(b"\n"):
            if self._offset > self._max_bytes:
                raise self._expanded()
            self.n_lines += 1
            yield Line(self.n_lines, self._offset, line)
            self._offset += len(line) + 1

    def _position(self) -> int:
        """Returns the place of the next byte in the file; of a compressed one, the end of what the buffer is made from.

        It is the same each time the file is read, as a part must end where the next one begins.
        """
        if self._compression is None:
            return self._offset
        self._peek()
        return self.n_bytes

    def _skip_to(self, start: int) -> None:
        """Passes over the lines that begin before a position; counts them."""
        is_inside = False
        while (position := self._position()) < start and (content := self._peek()):
            content = content[: start - position] if self._compression is None else content
            is_inside = not content.endswith(b"\n")
            self._pass_over(content)
        while is_inside and (content := self._read_piece(READ_BYTES)):
            self._offset += len(content)
            self.n_lines += content.endswith(b"\n")
            is_inside = not content.endswith(b"\n")
        self.n_lines += is_inside  # a last line without line feed
        self.n_skipped = self.n_lines

    def _pass_over(self, content: bytes) -> None:
        """Takes what begins the buffer out of it."""
        self.n_lines += content.count(b"\n")
        self._offset += len(self._stream.read(len(content)))
        if self._offset > self._max_bytes:
            raise self._expanded()

    def _pieces(self, piece: bytes) -> Iterator[bytes]:
        while piece:
            self._offset += len(piece)
            yield piece.removesuffix(b"\n")
            piece = b"" if piece.endswith(b"\n") else self._read_piece(READ_BYTES)

    def _read_piece(self, size: int) -> bytes:
        if self._offset > self._max_bytes:
            raise self._expanded()
        try:
            return self._stream.readline(size)
        except BrokenStreamError as error:
            raise self._broken(error) from error

    def _peek(self) -> bytes:
        """Returns the content of the buffer, which is filled if it is empty; nothing at the end of the file."""
        try:
            return self._stream.peek(1)
        except BrokenStreamError as error:
            raise self._broken(error) from error

    def _expanded(self) -> SourceError:
        return SourceError(
            f"{self.path}:{self.n_lines + 1}: the compressed stream unpacks to more than {self._max_bytes} bytes, "
            f"{MAX_EXPANSION} times its size, as web text never does; if its content is sound, give it decompressed"
        )

    def _broken(self, error: BrokenStreamError) -> SourceError:
        return SourceError(
            f"{self.path}:{self.n_lines + 1}: the compressed stream breaks off here ({error}); "
            "download or compress the file again (nothing was written for it)"
        )


def open_regular_file(path: Path) -> io.FileIO:
    """Opens a file for reading, without a buffer.

    Raises:
        SourceError: It is missing, not readable, or not a regular file.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode) and not path.is_dir():  # a pipe or a device may have no end
            raise SourceError(f"{path} is a pipe or a device; give a regular file")
        return open(path, "rb", buffering=0)
    except LASTING_ERRORS as error:
        raise SourceError(f"{path} cannot be read ({error.strerror}); fix its path or its permissions") from error


class _HashingReader(io.RawIOBase):
    """A file whose bytes are counted, and hashed unless that is switched off, while they are read."""

    def __init__(self, file: io.FileIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()
        self.n_bytes = 0
        self.is_hashing = True
        self.head = self._file.read(HEAD_BYTES)
        self._file.seek(0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        n_bytes = self._file.readinto(buffer)
        if self.is_hashing:
            self.digest.update(buffer[:n_bytes])
        self.n_bytes += n_bytes
        return n_bytes

    def close(self) -> None:
        self._file.close()
        super().close()


def _decompressed(raw: _HashingReader, compression: Compression | None) -> io.BufferedReader:
    stream: io.RawIOBase = (
        raw if compression is None else PromptReader(compression.open(io.BufferedReader(raw, COMPRESSED_BYTES)))
    )
    return io.BufferedReader(stream, READ_BYTES)
