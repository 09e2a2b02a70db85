"""Parquet through the steps that read sources, compared with the same records as JSON lines."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mlfilter_core.corpus.documents import DocumentSchema
from mlfilter_core.corpus.json_lines import lines, members
from mlfilter_core.corpus.parquet_source import ROWS_PER_GROUP
from mlfilter_core.corpus.source_files import find_sources
from mlfilter_core.embedding.embed_file import embed_file
from mlfilter_core.embedding.embed_report import EmbedReport
from mlfilter_core.embedding.embed_request import EmbedRequest
from mlfilter_core.embedding_store.output_values import OutputValues
from mlfilter_core.embedding_store.reader import EmbeddingFile
from mlfilter_core.encoder.encoder import Encoder
from mlfilter_core.encoder.model_files import ModelFiles
from mlfilter_core.errors import AnnotationError, SourceError
from tests.conftest import WriteLines

N, GROUP_ROWS = 60, 13
SCHEMA = DocumentSchema(("text",), index_keys=("meta.language", "n"), label_keys="meta.score", label_dtype="float32")
RECORDS: list[dict[str, Any]] = [
    {
        "id": f"d{i}",
        "text": f"document {i} " * (1 + i % 4),
        "n": i * 2**50,
        "meta": {"language": "de" if i % 3 else "en", "score": i / 7, "tags": ["a", None]},
        "unread": {"x": [i]},
    }
    for i in range(N)
]
RECORDS[5]["text"] = None
RECORDS[17]["text"] = "  "
RECORDS[29]["meta"] = None
RECORDS[40]["meta"] = {"language": "fr", "score": None, "tags": []}


class StoppedError(Exception):
    """What stops an embedding."""


class Stopping:
    """An encoder that raises after some documents."""

    def __init__(self, encoder: Encoder, after: int) -> None:
        self.encoder = encoder
        self.n_left = after

    def __getattr__(self, name: str) -> Any:
        return getattr(self.encoder, name)

    def encode(self, tokens: Any, *settings: Any) -> Any:
        if self.n_left <= 0:
            raise StoppedError
        self.n_left -= len(tokens.input_ids)
        return self.encoder.encode(tokens, *settings)


Embed = Callable[..., tuple[EmbedReport, Path]]


@pytest.fixture
def corpus(tmp_path: Path, write_lines: WriteLines) -> Path:
    write_lines("corpus/lines/x.jsonl", RECORDS)
    (tmp_path / "corpus/rows").mkdir()
    pq.write_table(pa.Table.from_pylist(RECORDS), tmp_path / "corpus/rows/x.parquet", row_group_size=GROUP_ROWS)
    return tmp_path / "corpus"


@pytest.fixture
def embed(corpus: Path, tiny_files: ModelFiles, tiny_encoder: Encoder) -> Embed:
    """Embeds the file of a folder; keywords change the request."""

    def run(folder: str, encoder: Any = tiny_encoder, **changes: Any) -> tuple[EmbedReport, Path]:
        (source,) = find_sources(corpus / folder, "*", corpus.parent / "out")
        request = EmbedRequest(tiny_files, tiny_encoder.settings, SCHEMA, commit_documents=10)
        output = corpus.parent / f"out/{folder}/x.h5"
        rejects = output.with_name("rejected.jsonl")
        return embed_file(source, output, rejects, dataclasses.replace(request, **changes), encoder), output

    return run


def datasets(path: Path) -> dict[str, Any]:
    with h5py.File(path) as file:
        found: dict[str, Any] = {}
        file.visititems(lambda name, node: found.update({name: node}) if isinstance(node, h5py.Dataset) else None)
        return {name: (str(node.dtype), node[()].tolist()) for name, node in found.items()}


def test_embeddings_of_parquet_are_those_of_the_same_records_as_lines(embed: Embed) -> None:
    (lines, of_lines), (rows, of_rows) = embed("lines"), embed("rows")
    facts = ("lines", "documents", "rejected", "blank", "tokens", "truncated", "rejected_by_reason")
    assert [getattr(rows, name) for name in facts] == [getattr(lines, name) for name in facts]
    assert rows.rejected_by_reason == {"not_a_string": 1, "empty_text": 1, "missing_key": 1, "missing_label": 1}
    expected, found = datasets(of_lines), datasets(of_rows)
    numbers = np.array(found.pop("train/source_offset")[1])
    expected.pop("train/source_offset")
    assert found == expected
    assert found["train/index/n"][1][1] == str(2**50).encode()
    in_file = numbers // ROWS_PER_GROUP * GROUP_ROWS + numbers % ROWS_PER_GROUP
    assert in_file.tolist() == [line - 1 for line in found["train/source_line"][1]]


def test_a_rejected_row_is_kept_with_its_position_its_reason_and_its_columns(embed: Embed) -> None:
    _, output = embed("rows")
    rejected = [json.loads(line) for line in output.with_name("rejected.jsonl").read_text().splitlines()]
    assert [(line["line"], line["offset"], line["reason"]) for line in rejected] == [
        (6, 5, "not_a_string"),
        (18, ROWS_PER_GROUP + 4, "empty_text"),
        (30, 2 * ROWS_PER_GROUP + 3, "missing_key"),
        (41, 3 * ROWS_PER_GROUP + 1, "missing_label"),
    ]
    meta = {"language": RECORDS[5]["meta"]["language"], "score": RECORDS[5]["meta"]["score"]}
    assert json.loads(rejected[0]["raw"]) == {"id": "d5", "text": None, "n": 5 * 2**50, "meta": meta}


@pytest.mark.parametrize("after", [1, 10, 35])
def test_an_interrupted_file_resumes_and_is_the_same_in_the_end(
    embed: Embed, tiny_encoder: Encoder, after: int
) -> None:
    _, output = embed("rows")
    undisturbed = datasets(output)
    output.unlink()
    with pytest.raises(StoppedError):
        embed("rows", Stopping(tiny_encoder, after))
    report, _ = embed("rows")
    assert report.resumed >= after - 20
    assert datasets(output) == undisturbed


@pytest.mark.parametrize("keys", [["*"], ["unread", "meta.tags", "text"]])
def test_output_values_are_found_in_other_columns(embed: Embed, keys: list[str]) -> None:
    """The limit on lines was for the columns that were embedded: others may be longer."""
    (_, of_lines), (_, of_rows) = embed("lines"), embed("rows", max_line_bytes=180)
    found: list[list[Any]] = []
    for path in (of_lines, of_rows):
        with (
            EmbeddingFile(path, "train") as file,
            OutputValues(file, ["document_id", *keys], ["score"], None) as values,
        ):
            written = b"".join(
                lines([*keys, members("row", range(n))]) for n, keys in values.members(slice(0, file.n_rows))
            )
            found.append([json.loads(line) for line in written.splitlines()])
            values.check_complete()
    assert found[0] == found[1]
    assert len(found[1]) == N - 4


def test_an_output_key_that_no_row_has_is_named_with_the_columns(embed: Embed) -> None:
    _, path = embed("rows")
    with EmbeddingFile(path, "train") as file, OutputValues(file, ["texts"], [], None) as values:
        list(values.members(slice(0, file.n_rows)))
        with pytest.raises(AnnotationError, match=r'"texts" is neither in .* there are: .*id, text, n, meta, unread'):
            values.check_complete()


def test_a_changed_source_is_noticed(embed: Embed, corpus: Path) -> None:
    _, path = embed("rows")
    source = corpus / "rows/x.parquet"
    content = source.read_bytes()
    changed = content.replace(b"parquet-cpp", b"parquet-c++", 1)
    assert changed != content
    source.write_bytes(changed)
    with EmbeddingFile(path, "train") as file, OutputValues(file, ["*"], [], None) as values:
        with pytest.raises(SourceError, match=r"x\.parquet changed since .*|cannot be read"):
            list(values.members(slice(0, file.n_rows)))
            values.check_complete()


@pytest.mark.parametrize("damage", ["no column", "cut short", "broken page"])
def test_a_source_that_cannot_be_read_leaves_nothing(embed: Embed, corpus: Path, damage: str) -> None:
    source = corpus / "rows/x.parquet"
    content = bytearray(source.read_bytes())
    if damage == "no column":
        pq.write_table(pa.table({"id": ["a"], "meta": ["b"]}), source)
    elif damage == "cut short":
        source.write_bytes(content[:-100])
    else:
        chunk = pq.ParquetFile(source).metadata.row_group(3).column(1)
        content[chunk.dictionary_page_offset + 3 : chunk.dictionary_page_offset + 9] = b"\xff" * 6
        source.write_bytes(content)
    with pytest.raises(SourceError, match=r"x\.parquet"):
        embed("rows")
    left = [path.name for path in (corpus.parent / "out").rglob("*") if path.is_file()]
    assert set(left) <= {".x.h5.committed"}
