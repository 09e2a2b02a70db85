"""Random pieces of source files, whole lines each, from which totals over all files are estimated.

Of plain files, a piece is the lines that begin in one of the stretches of `BLOCK_BYTES` that all files together are
cut into, each as likely as any other: long lines and large files get their due. In a compressed file nothing can be
found but its beginning, so that the beginnings of some files, drawn at random, stand for all of each.
"""

import gzip
import random
import stat
import zlib
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import IO, Any, cast

from mlfilter_core.corpus.lines import GZIP_MAGIC, SKIPPABLE_FRAME, ZSTD_MAGIC
from mlfilter_core.files.task_files import TaskFile
from mlfilter_core.files.zstd import zstd
from mlfilter_core.plan.findings import Findings

# Some ten web pages. All of these are arbitrary: together they are read and tokenised in seconds.
BLOCK_BYTES = 32 << 10
MAX_BLOCKS = 200
MAX_HEADS = 24
HEAD_BYTES = 128 << 10  # of a compressed file
MAX_UNPACKED_BYTES = 64 << 20  # of a beginning that holds no line feed, or is a bomb
SIP_BYTES = 4 << 10  # decompressors read ahead: with more at a time it would not be known which bytes gave which lines
READ_BYTES = 64 << 10


@dataclass(frozen=True)
class Block:
    """Consecutive lines of one file.

    Attributes:
        file: The file.
        n_bytes: Of the file on disk that these lines stand for.
        lines: Without line feeds; each is cut to one byte above the job's limit where it is longer.
        lines_bytes: Decompressed.
    """

    file: TaskFile
    n_bytes: float
    lines: Sequence[bytes]
    lines_bytes: int


@dataclass(frozen=True)
class FileHead:
    """The beginning of a compressed file.

    Attributes:
        n_bytes: Of the whole file on disk.
        blocks: In order.
        is_whole: Whether that is all of the file.
    """

    n_bytes: int
    blocks: Sequence[Block]
    is_whole: bool


@dataclass(frozen=True)
class BlockSample:
    """Pieces of the files of a corpus.

    Attributes:
        blocks: Of the plain files.
        n_blocks: That there are.
        plain_bytes: Of all plain files.
        heads: Of compressed files.
        n_compressed: Compressed files that there are.
        compressed_bytes: Of them all, on disk.
        bytes_by_file: Of every file on disk, by its relative path.
    """

    blocks: Sequence[Block]
    n_blocks: int
    plain_bytes: int
    heads: Sequence[FileHead]
    n_compressed: int
    compressed_bytes: int
    bytes_by_file: dict[str, int]

    @property
    def all_blocks(self) -> list[Block]:
        """Those of compressed files as well."""
        return [*self.blocks, *(block for head in self.heads for block in head.blocks)]

    @property
    def is_everything(self) -> bool:
        """Whether all of the files was read."""
        all_heads = len(self.heads) == self.n_compressed and all(head.is_whole for head in self.heads)
        return len(self.blocks) == self.n_blocks and all_heads


def draw_blocks(files: Sequence[TaskFile], max_line_bytes: int, seed: int, findings: Findings) -> BlockSample:
    """Draws pieces of some files; the same seed draws the same.

    Args:
        files: All of the corpus; each is opened once, for its first bytes.
        max_line_bytes: Longer lines are cut.
        seed: Of the draw.
        findings: Takes the files that cannot be read.
    """
    plain: list[tuple[TaskFile, int]] = []
    compressed: list[tuple[TaskFile, int]] = []
    for file in files:
        with findings.noting(f"{file.path} cannot be read", "mend its path or its permissions"):
            status = file.path.stat()
            if not stat.S_ISREG(status.st_mode):
                findings.add_problem(f"{file.path} is no file but a folder, a pipe or a device; give a file")
                continue
            with open(file.path, "rb", buffering=0) as opened:
                is_compressed = _kind(opened.read(4)) is not None
            (compressed if is_compressed else plain).append((file, status.st_size))
    chosen = random.Random(seed)
    ends = list(accumulate(-(-size // BLOCK_BYTES) for _, size in plain))
    n_blocks = ends[-1] if ends else 0
    blocks = []
    for number in sorted(chosen.sample(range(n_blocks), min(MAX_BLOCKS, n_blocks))):
        place = bisect_right(ends, number)
        file, size = plain[place]
        start = (number - (ends[place - 1] if place else 0)) * BLOCK_BYTES
        with findings.noting(f"{file.path} cannot be read"):
            blocks.append(_read_block(file, start, min(BLOCK_BYTES, size - start), max_line_bytes))
    heads = []
    for file, size in chosen.sample(compressed, min(MAX_HEADS, len(compressed))):
        try:
            heads.append(_read_head(file, size, max_line_bytes))
        except (EOFError, zlib.error, gzip.BadGzipFile, zstd.ZstdError) as error:
            findings.add_problem(
                f"{file.path}: the compressed stream is broken ({error}); fetch or compress the file again"
            )
        except OSError as error:
            findings.add_problem(f"{file.path} cannot be read ({error.strerror})")
    return BlockSample(
        blocks,
        n_blocks,
        sum(size for _, size in plain),
        heads,
        len(compressed),
        sum(size for _, size in compressed),
        {file.relative: size for file, size in (*plain, *compressed)},
    )


def _kind(head: bytes) -> str | None:
    if head.startswith(GZIP_MAGIC):
        return "gzip"
    return "zstd" if head.startswith(ZSTD_MAGIC) or SKIPPABLE_FRAME.match(head) else None


def _decompressed(file: IO[bytes], kind: str | None, source: Any = None) -> IO[bytes]:
    file.seek(0)
    if kind == "gzip":
        return cast(IO[bytes], gzip.GzipFile(fileobj=source or file, mode="rb"))
    return cast(IO[bytes], zstd.ZstdFile(source or file)) if kind == "zstd" else file


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
    """Goes to the next line, or beyond `end`."""
    while opened.tell() < end and (piece := opened.readline(READ_BYTES)):
        if piece.endswith(b"\n"):
            return


def _read_head(file: TaskFile, n_bytes: int, max_line_bytes: int) -> FileHead:
    content = bytearray()
    # A decompressor gives what one block of the stream holds only after all of it, a little at a time: only when it
    # asks for more is it known how much of the file gave what is there.
    n_read = n_known = n_known_from = 0
    is_whole = False
    with open(file.path, "rb") as opened:
        sips = _Sips(opened)
        stream: Any = _decompressed(opened, _kind(opened.read(4)), sips)
        while len(content) < MAX_UNPACKED_BYTES and (n_read < HEAD_BYTES or content.find(b"\n", 0, n_known) < 0):
            piece = stream.read1(READ_BYTES)
            if not piece:
                is_whole = True
                break
            if sips.n_bytes > n_read:
                n_known, n_known_from = len(content), n_read
                n_read = sips.n_bytes
            content += piece
    if is_whole:
        n_read = n_bytes
    elif n_known:
        del content[n_known:]
        n_read = n_known_from
    unpacked = len(content)
    lines = bytes(content).split(b"\n")
    last = lines.pop()  # what follows the last line feed: nothing, or a line of which the rest was not read
    if is_whole and last:
        lines.append(last)
    by_block: dict[int, list[bytes]] = {}
    start = 0
    for line in lines:
        by_block.setdefault(start // BLOCK_BYTES, []).append(line[: max_line_bytes + 1])
        start += len(line) + 1
    blocks = []
    for own in by_block.values():
        lines_bytes = sum(len(line) + 1 for line in own)
        blocks.append(Block(file, n_read * lines_bytes / max(unpacked, 1), own, lines_bytes))
    if is_whole and blocks:  # a last line without a line feed counts one byte that is not there
        share = n_bytes / sum(block.n_bytes for block in blocks)
        blocks = [Block(block.file, block.n_bytes * share, block.lines, block.lines_bytes) for block in blocks]
    return FileHead(n_bytes, blocks, is_whole)


class _Sips:
    """A file that is read a little at a time, whatever is asked for.

    Attributes:
        n_bytes: Read so far.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.n_bytes = 0

    def read(self, size: int = -1) -> bytes:
        piece = self._file.read(SIP_BYTES if size < 0 else min(size, SIP_BYTES))
        self.n_bytes += len(piece)
        return piece
