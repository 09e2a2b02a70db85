"""Compressed streams, recognised by their first bytes, as streams of decompressed bytes.

Knows nothing about what they contain. A new compression is one row of `COMPRESSIONS`.
"""

import bz2
import gzip
import io
import lzma
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Protocol, cast

from mlfilter_core.files.zstd import zstd

HEAD_BYTES = 16  # enough for every magic number
# The memory of a decompressor: a frame or stream that asks for more is refused. `zstd --long=31` asks for 2 GiB, and so
# much is in use only where the stream is as long; xz -9 asks for 65 MiB.
ZSTD_WINDOW_LOG = 31
XZ_MEMORY_BYTES = 1 << 30
PIECE_BYTES = 1 << 16  # compressed bytes that bzip2 and xz are given at a time; arbitrary


class Readable(Protocol):
    """A file that can be read in pieces."""

    def read(self, size: int = -1, /) -> bytes: ...


class BrokenStreamError(Exception):
    """A compressed stream is damaged, incomplete, or asks for more memory than it may have."""


@dataclass(frozen=True)
class Compression:
    """A way of compressing files.

    Attributes:
        name: Name for messages.
        suffixes: Suffixes of file names.
        magic: Pattern of the first bytes.
        open: Returns the decompressed stream of an open file; several streams in a row are one.
    """

    name: str
    suffixes: tuple[str, ...]
    magic: re.Pattern[bytes]
    open: Callable[[Readable], io.BufferedIOBase]


def compression_of(head: bytes) -> Compression | None:
    """Returns the compression of a file with these first `HEAD_BYTES`, or None for a plain file."""
    return next((each for each in COMPRESSIONS if each.magic.match(head)), None)


class PromptReader(io.RawIOBase):
    """Returns the bytes decompressed so far: everything before a broken place is read before the error."""

    def __init__(self, stream: io.BufferedIOBase) -> None:
        self._stream = stream
        self._error: Exception | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fills the start of a buffer.

        Raises:
            BrokenStreamError: The stream is broken.
        """
        try:
            if self._error is not None:  # a decompressor may take what follows an error for the end
                raise self._error
            return self._stream.readinto1(buffer)
        except (EOFError, zlib.error, gzip.BadGzipFile, zstd.ZstdError, BrokenStreamError) as error:
            self._error = error
            raise BrokenStreamError(str(error)) from error

    def close(self) -> None:
        self._stream.close()
        super().close()


class _Streams(io.RawIOBase):
    """The streams of a file in a row. Unlike `bz2.open` and `lzma.open`, it does not pass over what follows them."""

    def __init__(
        self, file: Readable, decompressor: Callable[[], bz2.BZ2Decompressor | lzma.LZMADecompressor], padding: bytes
    ) -> None:
        self._file = file
        self._new = decompressor
        self._decompressor = decompressor()
        self._padding = padding
        self._is_begun = False  # whether this stream has bytes: a file may end before it

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while True:
            piece = b""
            if self._decompressor.eof:
                piece = self._decompressor.unused_data
                self._decompressor, self._is_begun = self._new(), False
            elif self._decompressor.needs_input:
                piece = self._file.read(PIECE_BYTES)
                if not piece:
                    if not self._is_begun:
                        return 0
                    raise BrokenStreamError("it ends before the end of its stream")
            if not self._is_begun:
                piece = piece.lstrip(self._padding)
                if not piece:
                    continue
                self._is_begun = True
            try:
                content = self._decompressor.decompress(piece, len(buffer))
            except (OSError, lzma.LZMAError, ValueError) as error:  # OSError: an invalid stream of bzip2
                raise BrokenStreamError(str(error)) from error
            if content:
                buffer[: len(content)] = content
                return len(content)


def _open_gzip(file: Readable) -> io.BufferedIOBase:
    return gzip.GzipFile(fileobj=cast(IO[bytes], file))


def _open_zstd(file: Readable) -> io.BufferedIOBase:
    options = {int(zstd.DecompressionParameter.window_log_max): ZSTD_WINDOW_LOG}
    return zstd.ZstdFile(cast(IO[bytes], file), options=options)


def _open_bzip2(file: Readable) -> io.BufferedIOBase:
    return io.BufferedReader(_Streams(file, bz2.BZ2Decompressor, b""))


def _open_xz(file: Readable) -> io.BufferedIOBase:
    def decompressor() -> lzma.LZMADecompressor:
        return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_MEMORY_BYTES)

    return io.BufferedReader(_Streams(file, decompressor, b"\0"))  # zeros may stand between streams


COMPRESSIONS = (
    Compression("gzip", (".gz",), re.compile(rb"\x1f\x8b"), _open_gzip),
    # Files of pzstd begin with a skippable frame.
    Compression("Zstandard", (".zst", ".zstd"), re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18"), _open_zstd),
    # A block begins with the digits of pi, an empty stream ends with those of its root.
    Compression("bzip2", (".bz2",), re.compile(rb"BZh[1-9](1AY&SY|\x17\x72\x45\x38\x50\x90)"), _open_bzip2),
    Compression("xz", (".xz",), re.compile(rb"\xfd7zXZ\x00"), _open_xz),
)
