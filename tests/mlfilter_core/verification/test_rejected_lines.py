import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from mlfilter_core.corpus.documents import Rejection
from mlfilter_core.corpus.lines import SourceReader
from mlfilter_core.corpus.rejects import BASE64_BYTES, RejectsFile
from mlfilter_core.errors import SourceError
from mlfilter_core.verification.rejected_lines import WHOLE_BYTES, read_rejected_lines

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a rejects file with the lines, as they are or in pieces."""

    def run(*lines: bytes, in_pieces: bool = False, detail: str = 'no "raw_base64":"') -> Path:
        with RejectsFile(tmp_path / "x.jsonl") as file:
            for i, line in enumerate(lines):
                rejection = Rejection(2 * i + 1, 10 * i, "not_json", detail)
                if in_pieces:
                    file.add_pieces(rejection, (line[k : k + 700_001] for k in range(0, len(line), 700_001)))
                else:
                    file.add(rejection, line)
        return tmp_path / "x.jsonl"

    return run


def read(path: Path) -> list[tuple[int, int, str, bytes]]:
    with SourceReader(path) as reader:
        return [(r.line, r.offset, r.reason, b"".join(r.pieces)) for r in read_rejected_lines(reader)]


@pytest.mark.parametrize("in_pieces", [False, True])
@pytest.mark.parametrize("detail", ["", 'no "raw_base64":"', "x" * 3 * WHOLE_BYTES])
def test_lines_come_back_as_they_were(write: Write, in_pieces: bool, detail: str) -> None:
    sizes = [0, 1, 2, 3, 1000, *(n * 3 // 4 + d for n in (WHOLE_BYTES,) for d in (-200, -60, -57, 0, 1))]
    lines = [b"{broken", "größer\r".encode(), b"caf\xe9", b'"\\"', *(bytes(n) for n in (*sizes, BASE64_BYTES + 1))]
    expected = [(2 * i + 1, 10 * i, "not_json", line) for i, line in enumerate(lines)]
    assert read(write(*lines, in_pieces=in_pieces, detail=detail)) == expected


@pytest.mark.parametrize("size", range(WHOLE_BYTES - 12, WHOLE_BYTES + 12, 4))
def test_a_line_may_end_anywhere_in_a_piece(tmp_path: Path, size: int) -> None:
    facts = b'{"line":1,"offset":0,"reason":"a","detail":"","raw_base64":"'
    for shift in range(4):
        head = facts.replace(b'"detail":"', b'"detail":"' + b"x" * (shift + WHOLE_BYTES - len(facts)))
        (tmp_path / "x.jsonl").write_bytes(head + b"A" * size + b'"}\n')
        assert read(tmp_path / "x.jsonl") == [(1, 0, "a", bytes(size // 4 * 3))]


@pytest.mark.parametrize(
    "line",
    [
        b"{broken",
        b"[1]",
        b'{"line": 1}',
        b'{"line":1,"offset":0,"reason":"a","raw":5}',
        b'{"line":1,"offset":0,"reason":"a","raw_base64":"*"}',
        b'{"line":1,"offset":0,"reason":"a","raw_base64":"' + b"A" * 2 * WHOLE_BYTES,
        b'{"line":1,"offset":0,"reason":"a","raw_base64":"' + b"*" * 2 * WHOLE_BYTES + b'"}',
        b'{"line":1,"offset":0,"reason":"a","raw":"' + b"A" * 2 * WHOLE_BYTES,
    ],
)
def test_what_is_no_rejected_line_is_named(tmp_path: Path, line: bytes) -> None:
    good = b'{"line":1,"offset":0,"reason":"a","raw":"b"}\n'
    (tmp_path / "x.jsonl").write_bytes(good + line)
    with pytest.raises(SourceError, match=r"x\.jsonl:2: no line of a file of rejected lines"):
        read(tmp_path / "x.jsonl")


def test_a_long_line_does_not_stand_in_memory(write: Write) -> None:
    path = write(bytes(50 << 20), in_pieces=True)
    tracemalloc.start()
    with SourceReader(path) as reader:
        assert sum(len(piece) for line in read_rejected_lines(reader) for piece in line.pieces) == 50 << 20
    assert tracemalloc.get_traced_memory()[1] < 10 << 20
    tracemalloc.stop()
