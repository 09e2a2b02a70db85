"""Parquet files in which one number of the footer or of a page's header is not the truth.

    python -m tests.mlfilter_core.corpus.lying_parquet <file> <first lie>

reads the file with each lie from the first one on, and prints the result of each as a line of JSON. A lie that ends the
process is the one whose line is missing.
"""

import io
import json
import resource
import signal
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from mlfilter_core.corpus.lines import Line
from mlfilter_core.corpus.parquet_source import ParquetSource
from mlfilter_core.corpus.sources import open_source
from mlfilter_core.errors import SourceError

TIMEOUT_S = 20  # of one lie; the slowest takes 1 s when all cores are busy
MEMORY_BYTES = 2 << 30  # above what the process has with its libraries; a footer may ask for any number
NUMBERS = (-(1 << 63), -1, 0, 1, 1 << 16, (1 << 31) - 1, 1 << 31, (1 << 63) - 1)


@dataclass(frozen=True)
class Number:
    """A number in a structure of Thrift's compact protocol.

    Attributes:
        path: Ids of fields, and places in lists, from the outermost on: `4.0.3`.
        start: Offset of its first byte.
        end: Offset after its last byte.
        value: The truth.
        is_length: Whether it is the length of a string, which is not negative.
    """

    path: str
    start: int
    end: int
    value: int
    is_length: bool

    def lies(self) -> Iterator[tuple[int, bytes]]:
        """Yields other numbers, and how they are written."""
        for value in sorted({*NUMBERS, self.value - 1, self.value + 1} - {self.value}):
            if value >= 0 or not self.is_length:
                yield value, _written(value if self.is_length else (value << 1) ^ (value >> 63))


def numbers(content: bytes, start: int) -> Iterator[Number]:
    """Yields the numbers of the structure that begins at an offset."""
    stream = io.BytesIO(content)
    stream.seek(start)
    yield from _struct(stream, "")


def lies(content: bytes) -> Iterator[tuple[str, bytes]]:
    """Yields what is not the truth, and the file that says so.

    A number in the header of a page keeps its length, as all that follows it has its place.
    """
    start = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    for number in numbers(content, start):
        for value, written in number.lies():
            footer = content[start : number.start] + written + content[number.end : -8]
            what = f"footer {number.path}: {number.value} -> {value}"
            yield what, content[:start] + footer + len(footer).to_bytes(4, "little") + b"PAR1"
    for page in _pages(content):
        for number in numbers(content, page):
            for value, written in number.lies():
                if len(written) == number.end - number.start:
                    what = f"page at {page} {number.path}: {number.value} -> {value}"
                    yield what, content[: number.start] + written + content[number.end :]


def _pages(content: bytes) -> Iterator[int]:
    """Yields where the first pages of each column begin."""
    metadata = pq.read_metadata(io.BytesIO(content))
    for group in range(metadata.num_row_groups):
        for i in range(metadata.num_columns):
            column = metadata.row_group(group).column(i)
            yield from {column.data_page_offset, column.dictionary_page_offset or column.data_page_offset}


def _struct(stream: io.BytesIO, path: str) -> Iterator[Number]:
    field = 0
    while (header := stream.read(1)[0]) != 0:
        field = field + (header >> 4) if header >> 4 else _signed(_unsigned(stream))
        if header & 15 > 2:  # a boolean is told by its type
            yield from _value(stream, header & 15, f"{path}{field}")


def _value(stream: io.BytesIO, kind: int, path: str) -> Iterator[Number]:
    start = stream.tell()
    if kind in (4, 5, 6):
        value = _signed(_unsigned(stream))
        yield Number(path, start, stream.tell(), value, is_length=False)
    elif kind == 8:
        value = _unsigned(stream)
        yield Number(path, start, stream.tell(), value, is_length=True)
        stream.seek(value, io.SEEK_CUR)
    elif kind == 9:
        header = stream.read(1)[0]
        for i in range(header >> 4 if header >> 4 < 15 else _unsigned(stream)):
            yield from _value(stream, header & 15, f"{path}.{i}")
    elif kind == 12:
        yield from _struct(stream, f"{path}.")
    else:
        stream.seek({1: 1, 2: 1, 3: 1, 7: 8}[kind], io.SEEK_CUR)


def _unsigned(stream: io.BytesIO) -> int:
    value = shift = 0
    while (byte := stream.read(1)[0]) > 127:
        value, shift = value | (byte & 127) << shift, shift + 7
    return value | byte << shift


def _signed(value: int) -> int:
    return value >> 1 ^ -(value & 1)


def _written(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


def rows_of(path: Path) -> list[bytes]:
    """Returns the rows, once they were read in both ways."""
    with open_source(path) as source:
        lines = [line for line in source.lines(1 << 20) if isinstance(line, Line)]
    with ParquetSource(path, None) as source:
        n_rows = sum(rows.num_rows for rows in source.rows_at(np.array([line.offset for line in lines])))
    assert n_rows == len(lines)
    return [line.content for line in lines]


def main(path: Path, first: int) -> None:
    truth = rows_of(path)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY_BYTES,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with tempfile.TemporaryDirectory() as folder:
        lying = Path(folder) / "x.parquet"
        for i, (what, content) in enumerate(lies(path.read_bytes())):
            if i >= first:
                lying.write_bytes(content)
                signal.alarm(TIMEOUT_S)
                print(json.dumps([i, what, *_result(lying, truth)]), flush=True)


def _result(path: Path, truth: list[bytes]) -> tuple[str, str]:
    try:
        rows = rows_of(path)
    except SourceError as error:
        return "refused", str(error)
    except Exception as error:
        return "unexpected", repr(error)
    return ("same", "") if rows == truth else ("other", f"{len(rows)} rows: {rows[:1]}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
