"""Properties of the reader and the batcher that hold for every input. Each run has the same examples."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlfilter_core.corpus.compression import compression_of
from mlfilter_core.corpus.documents import DocumentSchema
from mlfilter_core.corpus.lines import Line, SourceReader
from mlfilter_core.corpus.rejects import RejectsFile
from mlfilter_core.corpus.windows import Window, read_windows
from mlfilter_core.encoder.batching import plan_batches
from mlfilter_core.errors import SourceError
from mlfilter_core.files.task_files import TaskFile
from tests.conftest import COMPRESS

TEXT = DocumentSchema(("text",))
MAX_LINE_BYTES = 60
# No database: an example that failed becomes a separate test.
examples = settings(max_examples=300, derandomize=True, database=None, deadline=None)
every_compression = pytest.mark.parametrize("suffix", COMPRESS)

# Line feeds and other characters that end lines elsewhere are as frequent as all other characters.
pieces = st.sampled_from([b"\n", b"\r", b"\0", b"\xe2\x80\xa8", b"a"]) | st.binary(max_size=9)
contents = st.lists(pieces).map(b"".join).filter(lambda content: not is_compressed(content))
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=9)
documents = st.builds(lambda text: json.dumps({"text": f"a{text}"}, ensure_ascii=False).encode(), texts)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts | st.just("text"), inner, max_size=3),
    max_leaves=5,
).map(lambda value: json.dumps(value).encode())
blanks = st.binary(max_size=3).map(lambda content: bytes(b" \t\r"[byte % 3] for byte in content))
overlong = st.binary(min_size=MAX_LINE_BYTES + 1, max_size=MAX_LINE_BYTES * 3)
lines_of_all_kinds = documents | json_values | blanks | overlong | st.binary(max_size=20)
sources = st.lists(lines_of_all_kinds.filter(lambda line: b"\n" not in line and not is_compressed(line)))


def is_compressed(content: bytes) -> bool:
    """Whether the first bytes indicate a compression, as the reader believes them."""
    return compression_of(content) is not None


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("properties")


def read_lines(path: Path, max_line_bytes: int) -> Iterator[tuple[int, int, bytes]]:
    with SourceReader(path) as reader:
        for line in reader.lines(max_line_bytes):
            content = line.content if isinstance(line, Line) else b"".join(line.pieces)
            assert isinstance(line, Line) == (len(content) <= max_line_bytes)
            yield line.number, line.offset, content


def split(content: bytes) -> list[tuple[int, int, bytes]]:
    """The expected result of `read_lines`."""
    lines, offset = [], 0
    for number, line in enumerate(content.removesuffix(b"\n").split(b"\n") if content else [], 1):
        lines.append((number, offset, line))
        offset += len(line) + 1
    return lines


@every_compression
@examples
@given(content=contents, max_line_bytes=st.integers(1, 20), read_bytes=st.integers(1, 30))
def test_lines_are_those_of_the_content_whatever_its_compression(
    folder: Path, suffix: str, content: bytes, max_line_bytes: int, read_bytes: int
) -> None:
    (folder / "x").write_bytes(COMPRESS[suffix](content))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mlfilter_core.corpus.lines.READ_BYTES", read_bytes)
        lines = list(read_lines(folder / "x", max_line_bytes))
    assert lines == split(content)
    assert b"\n".join(line for *_, line in lines) == content.removesuffix(b"\n")


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@examples
@given(content=contents, data=st.data())
def test_a_stream_that_is_cut_anywhere_is_never_taken_for_a_whole_one(
    folder: Path, suffix: str, content: bytes, data: st.DataObject
) -> None:
    stream = COMPRESS[suffix](content)
    n_bytes = data.draw(st.integers(4, len(stream) - 1))  # four bytes show the compression
    (folder / "x").write_bytes(stream[:n_bytes])
    lines = []
    with pytest.raises(SourceError, match="breaks off here"):
        for line in read_lines(folder / "x", 20):
            lines.append(line)
    assert lines == split(content)[: len(lines)]


@every_compression
@examples
@given(lines=sources, window_documents=st.integers(1, 9), window_bytes=st.integers(1, 200))
def test_every_line_is_a_document_rejected_or_blank(
    folder: Path, suffix: str, lines: list[bytes], window_documents: int, window_bytes: int
) -> None:
    windows = read(folder, suffix, lines, window_documents, window_bytes)
    became = {document.line: content for w in windows for document, content in zip(w.documents, w.lines, strict=True)}
    rejected = {rejection.line: content_of(kept) for window in windows for rejection, kept in window.rejected}
    n_blank = sum(window.n_blank for window in windows)
    assert len(became) + len(rejected) + n_blank == len(lines)
    assert list(became) == sorted(became)
    blank = {i: line for i, line in enumerate(lines, 1) if i not in became and i not in rejected}
    assert all(line.isspace() or not line for line in blank.values())
    assert became | rejected | blank == dict(enumerate(lines, 1))


@examples
@given(lines=sources)
def test_rejected_lines_are_read_back_to_the_byte(folder: Path, lines: list[bytes]) -> None:
    rejected = [pair for window in read(folder, "", lines) for pair in window.rejected]
    with RejectsFile(folder / "rejected.jsonl") as file:
        for rejection, kept in rejected:
            if isinstance(kept, bytes):
                file.add(rejection, kept)
            else:
                file.add_pieces(rejection, iter([content_of(kept)[:7], b"", lines[rejection.line - 1][7:]]))
    assert (folder / "rejected.jsonl").exists() == bool(rejected)
    written = (folder / "rejected.jsonl").read_bytes().splitlines() if rejected else []
    again = [json.loads(line) for line in written]
    assert [(line["line"], line["reason"]) for line in again] == [(a.line, a.reason) for a, _ in rejected]
    raw = [line["raw"].encode() if "raw" in line else base64.b64decode(line["raw_base64"]) for line in again]
    assert raw == [lines[line["line"] - 1] for line in again]


def content_of(kept: bytes | IO[bytes]) -> bytes:
    if isinstance(kept, bytes):
        return kept
    with kept:
        return kept.read()


def read(
    folder: Path, suffix: str, lines: list[bytes], window_documents: int = 4, window_bytes: int = 200
) -> list[Window]:
    (folder / "x.jsonl").write_bytes(COMPRESS[suffix](b"".join(line + b"\n" for line in lines)))
    source = TaskFile("x.jsonl", "x", folder)
    with pytest.MonkeyPatch.context() as patch, SourceReader(source.path) as reader:
        patch.setattr("mlfilter_core.corpus.windows.WINDOW_DOCUMENTS", window_documents)
        patch.setattr("mlfilter_core.corpus.windows.WINDOW_BYTES", window_bytes)
        return list(read_windows(reader, source, TEXT, MAX_LINE_BYTES, folder))


@settings(examples, max_examples=600)
@given(
    n_tokens=st.lists(st.integers(0, 50) | st.integers(0, 2**31 - 1), max_size=60),
    max_documents=st.none() | st.integers(1, 70),
    max_tokens=st.integers(1, 200) | st.integers(1, 2**40),
)
def test_each_row_is_in_one_batch_within_both_limits(
    n_tokens: list[int], max_documents: int | None, max_tokens: int
) -> None:
    batches = [batch.tolist() for batch in plan_batches(np.array(n_tokens, np.int32), max_documents, max_tokens)]
    assert sorted(row for batch in batches for row in batch) == list(range(len(n_tokens)))
    longest = [max(n_tokens[row] for row in batch) for batch in batches]
    assert longest == sorted(longest, reverse=True)
    for batch, length in zip(batches, longest, strict=True):
        assert len(batch) <= (max_documents or len(n_tokens))
        assert len(batch) == 1 or len(batch) * length <= max_tokens
