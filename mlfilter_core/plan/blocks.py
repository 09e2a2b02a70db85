"""A random sample of source files, as blocks of whole lines from which totals over all files are estimated.

The plain files together are divided into stretches of `BLOCK_BYTES`. A block is the lines that begin in one stretch.
Each stretch is drawn with the same probability, so that long lines and large files have their due weight. A compressed
file can be read only from its beginning: some files are drawn, and the beginning of each stands for the whole file. So
do the first rows of a file in another format than JSON lines, of which each stands for the same share of the bytes.
"""

import random
import stat
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import IO

from mlfilter_core.corpus.compression import HEAD_BYTES, BrokenStreamError, PromptReader, compression_of
from mlfilter_core.corpus.documents import RecordKeys
from mlfilter_core.corpus.lines import OverlongLine
from mlfilter_core.corpus.sources import LINES, format_of, open_source
from mlfilter_core.errors import SourceError
from mlfilter_core.files.task_files import TaskFile
from mlfilter_core.plan.findings import Findings

# All of these are arbitrary: together, the blocks are read and tokenized in seconds.
BLOCK_BYTES = 32 << 10  # some ten web pages
MAX_BLOCKS = 200
MAX_PREFIXES = 24
PREFIX_BYTES = 128 << 10  # compressed
ROWS_BYTES = 512 << 10  # of rows as JSON
MAX_DECOMPRESSED_BYTES = 64 << 20  # for a beginning without a line feed, or a decompression bomb
SIP_BYTES = 4 << 10  # decompressors read ahead: larger reads would hide which bytes gave which lines
READ_BYTES = 64 << 10


@dataclass(frozen=True)
class Block:
    """Consecutive lines of one file.

    Attributes:
        file: The file.
        n_bytes: Bytes on disk that these lines stand for.
        lines: Lines without line feeds; a line above the job's limit is cut to one byte more than the limit.
        lines_bytes: Decompressed bytes.
    """

    file: TaskFile
    n_bytes: float
    lines: Sequence[bytes]
    lines_bytes: int


@dataclass(frozen=True)
class Prefix:
    """The beginning of a compressed file.

    Attributes:
        n_bytes: Bytes of the whole file on disk.
        blocks: Its blocks, in order.
        is_whole: Whether these are all of the file.
    """

    n_bytes: int
    blocks: Sequence[Block]
    is_whole: bool


@dataclass(frozen=True)
class BlockSample:
    """Blocks of the files of a corpus.

    Attributes:
        blocks: Blocks drawn from the plain files.
        n_blocks: Blocks in all plain files.
        plain_bytes: Bytes of all plain files.
        prefixes: Beginnings of the compressed files that were drawn.
        n_compressed: Number of all compressed files.
        compressed_bytes: Bytes of all compressed files on disk.
        bytes_by_file: Bytes of every file on disk, by its relative path.
    """

    blocks: Sequence[Block]
    n_blocks: int
    plain_bytes: int
    prefixes: Sequence[Prefix]
    n_compressed: int
    compressed_bytes: int
    bytes_by_file: Mapping[str, int]

    @property
    def all_blocks(self) -> list[Block]:
        """Blocks of plain and of compressed files."""
        return [*self.blocks, *(block for prefix in self.prefixes for block in prefix.blocks)]

    @property
    def is_everything(self) -> bool:
        """Whether all files were read as a whole."""
        all_prefixes = len(self.prefixes) == self.n_compressed and all(prefix.is_whole for prefix in self.prefixes)
        return len(self.blocks) == self.n_blocks and all_prefixes


def draw_blocks(
    files: Sequence[TaskFile], max_line_bytes: int, seed: int, findings: Findings, keys: RecordKeys | None = None
) -> BlockSample:
    """Draws a sample of the lines of some files; the same seed draws the same lines.

    Args:
        files: All files of the corpus; the first bytes of each are read.
        max_line_bytes: Limit above which a line is cut.
        seed: Seed of the draw.
        findings: Receives the files that cannot be read.
        keys: Keys to read of a file in columns that cannot be read as a whole, such as one with an encrypted column
            that the job leaves out.
    """
    chosen = random.Random(seed)
    plain: dict[TaskFile, int] = {}
    compressed: dict[TaskFile, int] = {}
    for file in files:
        with findings.noting(f"{file.path} cannot be read", "fix its path or its permissions"):
            status = file.path.stat()
            if not stat.S_ISREG(status.st_mode):
                findings.add_problem(f"{file.path} is a folder, a pipe or a device; give a file")
                continue
            with open(file.path, "rb", buffering=0) as opened:
                head = opened.read(HEAD_BYTES)
            is_plain = format_of(head) is LINES and compression_of(head) is None
            (plain if is_plain else compressed)[file] = status.st_size
    blocks, n_blocks = _draw_plain(plain, max_line_bytes, chosen, findings)
    return BlockSample(
        blocks=blocks,
        n_blocks=n_blocks,
        plain_bytes=sum(plain.values()),
        prefixes=_draw_prefixes(compressed, max_line_bytes, chosen, findings, keys),
        n_compressed=len(compressed),
        compressed_bytes=sum(compressed.values()),
        bytes_by_file={file.relative: size for file, size in (plain | compressed).items()},
    )


def _draw_plain(
    sizes: Mapping[TaskFile, int], max_line_bytes: int, chosen: random.Random, findings: Findings
) -> tuple[list[Block], int]:
    """Returns the blocks that were drawn, and how many there are in all."""
    files = list(sizes)
    ends = list(accumulate(-(-size // BLOCK_BYTES) for size in sizes.values()))
    n_blocks = ends[-1] if ends else 0
    blocks = []
    for number in sorted(chosen.sample(range(n_blocks), min(MAX_BLOCKS, n_blocks))):
        place = bisect_right(ends, number)
        file = files[place]
        start = (number - (ends[place - 1] if place else 0)) * BLOCK_BYTES
        with findings.noting(f"{file.path} cannot be read"):
            blocks.append(_read_block(file, start, min(BLOCK_BYTES, sizes[file] - start), max_line_bytes))
    return blocks, n_blocks


def _draw_prefixes(
    sizes: Mapping[TaskFile, int],
    max_line_bytes: int,
    chosen: random.Random,
    findings: Findings,
    keys: RecordKeys | None,
) -> list[Prefix]:
    prefixes = []
    for file in chosen.sample(list(sizes), min(MAX_PREFIXES, len(sizes))):
        try:
            prefixes.append(_read_prefix(file, sizes[file], max_line_bytes, keys))
        except BrokenStreamError as error:
            findings.add_problem(
                f"{file.path}: the compressed stream is broken ({error}); download or compress the file again"
            )
        except SourceError as error:
            findings.add_problem(str(error))
        except OSError as error:
            findings.add_problem(f"{file.path} cannot be read ({error.strerror})")
    return prefixes


def _read_block(file: TaskFile, start: int, n_bytes: int, max_line_bytes: int) -> Block:
    """Reads the lines that begin in a stretch of a plain file; the last may end beyond it."""
    lines: list[bytes] = []
    lines_bytes = 0
    with open(file.path, "rb") as opened:
        end = start + n_bytes
        if start:
            opened.seek(start - 1)
            _skip_line(opened, end)
        while opened.tell() < end:
            line = opened.readline(max_line_bytes + 2)
            if not line:
                break
            lines_bytes += len(line)
            if not line.endswith(b"\n"):
                _skip_line(opened, end)
            lines.append(line.removesuffix(b"\n")[: max_line_bytes + 1])
    return Block(file, n_bytes, lines, lines_bytes)


def _skip_line(opened: IO[bytes], end: int) -> None:
    """Moves to the start of the next line, or beyond `end`."""
    while opened.tell() < end and (piece := opened.readline(READ_BYTES)):
        if piece.endswith(b"\n"):
            return


def _read_prefix(file: TaskFile, n_bytes: int, max_line_bytes: int, keys: RecordKeys | None) -> Prefix:
    with open(file.path, "rb", buffering=0) as opened:
        is_lines = format_of(opened.read(HEAD_BYTES)) is LINES
    if is_lines:
        content, n_read, is_whole = _decompress_prefix(file)
    else:
        try:
            content, n_read, is_whole = _read_rows(file, max_line_bytes, None)
        except SourceError:
            if keys is None:
                raise
            content, n_read, is_whole = _read_rows(file, max_line_bytes, keys)
    if is_whole:
        n_read = n_bytes
    lines = content.split(b"\n")
    last = lines.pop()  # after the last line feed: nothing, or the read part of a line
    if is_whole and last:
        lines.append(last)
    by_block: dict[int, list[bytes]] = {}
    start = 0
    for line in lines:
        by_block.setdefault(start // BLOCK_BYTES, []).append(line)
        start += len(line) + 1
    # Of a whole file, the lines stand for all bytes: a missing last line feed must not count.
    n_unpacked = start if is_whole else len(content)
    blocks = []
    for own in by_block.values():
        own_bytes = sum(len(line) + 1 for line in own)
        cut = [line[: max_line_bytes + 1] for line in own]
        blocks.append(Block(file, n_read * own_bytes / n_unpacked, cut, own_bytes))
    return Prefix(n_bytes, blocks, is_whole)


def _read_rows(file: TaskFile, max_line_bytes: int, keys: RecordKeys | None) -> tuple[bytes, int, bool]:
    """Returns the first rows as lines, how many bytes on disk they stand for, and whether they are all of the file."""
    content, n_bytes = bytearray(), 0
    with open_source(file.path, keys, file.relative) as source:
        for row in source.lines(max_line_bytes):
            if len(content) >= ROWS_BYTES:
                return bytes(content), n_bytes, False
            content += b"".join(row.pieces)[: max_line_bytes + 1] if isinstance(row, OverlongLine) else row.content
            content += b"\n"
            n_bytes = source.n_bytes
    return bytes(content), file.path.stat().st_size, True


def _decompress_prefix(file: TaskFile) -> tuple[bytes, int, bool]:
    """Returns the first bytes decompressed, how many bytes on disk gave them, and whether they are all of the file."""
    content = bytearray()
    with open(file.path, "rb") as opened:
        compression = compression_of(opened.read(HEAD_BYTES))
        assert compression is not None, "draw_blocks has read the same bytes"
        opened.seek(0)
        sips = _Sips(opened)
        with PromptReader(compression.open(sips)) as stream:
            # A smaller one than the output of one read would leave the rest in the decompressor.
            buffer = memoryview(bytearray(MAX_DECOMPRESSED_BYTES))
            while len(content) < MAX_DECOMPRESSED_BYTES and (sips.n_bytes < PREFIX_BYTES or b"\n" not in content):
                piece = buffer[: stream.readinto(buffer)]
                if not piece:
                    return bytes(content), sips.n_bytes, True
                content += piece
    return bytes(content), sips.n_bytes, False


class _Sips:
    """A file that is read in small pieces, even if more is requested.

    Attributes:
        n_bytes: Bytes read so far.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.n_bytes = 0

    def read(self, size: int = -1) -> bytes:
        piece = self._file.read(SIP_BYTES if size < 0 else min(size, SIP_BYTES))
        self.n_bytes += len(piece)
        return piece
