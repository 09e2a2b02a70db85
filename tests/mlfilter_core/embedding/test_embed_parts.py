"""Files that are embedded in parts, compared with the same files embedded as a whole."""

import dataclasses
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mlfilter_core.corpus.documents import DocumentSchema
from mlfilter_core.corpus.source_files import find_sources
from mlfilter_core.embedding.embed_file import embed_file
from mlfilter_core.embedding.embed_parts import embed_in_parts, embed_part, n_parts_before, part_outputs, parts_of
from mlfilter_core.embedding.embed_report import EmbedReport
from mlfilter_core.embedding.embed_request import EmbedRequest, finished_embedding
from mlfilter_core.encoder.encoder import Encoder
from mlfilter_core.encoder.loading import load_encoder
from mlfilter_core.encoder.model_files import ModelFiles
from mlfilter_core.encoder.settings import Chunks, EncoderSettings
from mlfilter_core.errors import SourceError
from mlfilter_core.files.publishing import remove_leftovers
from mlfilter_core.files.task_files import Part, TaskFile
from tests.conftest import EVERY_COMPRESSION

N = 700
WINDOW = 32
SCHEMA = DocumentSchema(("text",), index_keys=("n",), label_keys="label")


class StoppedError(Exception):
    """What stops an embedding."""


class Stopping:
    """An encoder that counts documents, and raises after some."""

    def __init__(self, encoder: Encoder, after: int = 1 << 40) -> None:
        self.encoder = encoder
        self.after = after
        self.n_encoded = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.encoder, name)

    def encode(self, tokens: Any, *settings: Any) -> Any:
        if self.n_encoded >= self.after:
            raise StoppedError
        self.n_encoded += len(tokens.input_ids)
        return self.encoder.encode(tokens, *settings)


def lines() -> list[bytes]:
    """Documents of many lengths, some of them with the id of an earlier one, and every kind of other line."""
    rng = random.Random(5)
    texts = [rng.randbytes(rng.randrange(1, 1500)).hex(" ", 2) for _ in range(N)]
    written = [json.dumps({"text": text, "n": i, "label": i / 7}).encode() for i, text in enumerate(texts)]
    for i in range(50):
        written[i * 13] = json.dumps({"id": f"d{i % 40}", "text": f"ba be {i}", "n": i, "label": 1}).encode()
    for place, line in ((3, b"{broken"), (77, b""), (402, b'{"text": ""}'), (403, b"  "), (699, b'"text"')):
        written[place] = line
    written[500] = json.dumps({"text": "x" * 90_000, "n": 1, "label": 2}).encode()
    return written


@pytest.fixture
def request_(tiny_files: ModelFiles) -> EmbedRequest:
    settings = EncoderSettings(max_length=24)
    return EmbedRequest(tiny_files, settings, SCHEMA, commit_documents=WINDOW, max_line_bytes=80_000)


@pytest.fixture
def corpus(tmp_path: Path) -> Callable[..., TaskFile]:
    """Writes a corpus of one file; by default JSON lines, compressed by the suffix."""

    def write(name: str = "x.jsonl", content: bytes | None = None) -> TaskFile:
        path = tmp_path / "corpus/a" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(EVERY_COMPRESSION.get(path.suffix, bytes)(b"\n".join(lines())) if content is None else content)
        (file,) = find_sources(tmp_path / "corpus", "**/*", tmp_path / "out")
        return file

    return write


def outputs(file: TaskFile, name: str) -> tuple[Path, Path]:
    folder = file.folder.parent / name
    return file.output(folder, ".h5"), file.output(folder / "rejected", ".jsonl")


def in_parts(file: TaskFile, n: int, request: EmbedRequest, encoder: Any, order: int = 1) -> EmbedReport:
    """Embeds a file as a run does; `order` -1 begins with the last part."""
    output, rejects = outputs(file, f"in {n}")
    reports = [embed_part(part, output, request, encoder) for part in parts_of(file, output, n)[::order]]
    return embed_in_parts(file, output, rejects, request, encoder).with_parts(reports)


def as_a_whole(file: TaskFile, request: EmbedRequest, encoder: Any) -> EmbedReport:
    return embed_file(file, *outputs(file, "whole"), request, encoder)


def datasets(path: Path) -> dict[str, np.ndarray]:
    with h5py.File(path) as file:
        found: dict[str, np.ndarray] = {}
        file.visititems(lambda name, node: found.update({name: node[()]}) if isinstance(node, h5py.Dataset) else None)
        return found


def check_equal(report: EmbedReport, whole: EmbedReport) -> None:
    """Checks reports, datasets and provenance; batches have other members, which decides the last bits."""
    for name in ("source", "status", "lines", "documents", "rejected", "blank", "truncated", "duplicate_ids",
                 "tokens", "chunks", "rejected_by_reason", "resumed"):  # fmt: skip
        assert getattr(report, name) == getattr(whole, name), name
    found, expected = datasets(Path(report.output)), datasets(Path(whole.output))
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name].dtype == values.dtype and found[name].shape == values.shape
        if name.rpartition("/")[2] in ("embeddings", "embedding_scale"):
            tolerance = 1 if values.dtype == np.int8 else 1e-3 if values.dtype == np.float16 else 1e-6
            assert np.abs(found[name].astype(np.float64) - values).max(initial=0) <= tolerance
        else:
            np.testing.assert_array_equal(found[name], values)
    with h5py.File(report.output) as file, h5py.File(whole.output) as other:
        for name in ("source", "request", "counts", "versions", "statistics", "format_version", "encoder"):
            assert file["train"].attrs[name] == other["train"].attrs[name]


def rejected(file: TaskFile, name: str) -> bytes:
    return outputs(file, name)[1].read_bytes()


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst", ".xz", ".bz2"])
def test_joined_parts_are_the_whole_file(
    suffix: str, corpus: Callable[..., TaskFile], request_: EmbedRequest, tiny_encoder: Encoder
) -> None:
    file = corpus(f"x.jsonl{suffix}")
    whole = as_a_whole(file, request_, tiny_encoder)
    assert whole.rejected_by_reason == {"empty_text": 1, "line_too_long": 1, "not_json": 1, "not_an_object": 1}
    assert whole.duplicate_ids == 10
    assert whole.blank == 2
    for n, order in ((3, -1), (7, 1)):
        report = in_parts(file, n, request_, tiny_encoder, order)
        check_equal(report, whole)
        assert rejected(file, f"in {n}") == rejected(file, "whole")
        output, _ = outputs(file, f"in {n}")
        assert [path.name for path in output.parent.iterdir()] == ["x.h5"]
        assert finished_embedding(file, output, request_) == dataclasses.replace(
            finished_embedding(file, outputs(file, "whole")[0], request_), output=str(output)
        )


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_parts_of_chunked_documents(
    dtype: str, corpus: Callable[..., TaskFile], request_: EmbedRequest, tiny_files: ModelFiles
) -> None:
    settings = EncoderSettings(max_length=24, chunks=Chunks(overlap=2, most=5))
    encoder = load_encoder(tiny_files, settings, "cpu", 512)
    request = dataclasses.replace(request_, encoder=settings, embedding_dtype=dtype)
    file = corpus()
    whole = as_a_whole(file, request, encoder)
    assert whole.chunks > 2 * whole.documents
    check_equal(in_parts(file, 4, request, encoder), whole)


def test_parts_of_parquet_are_row_groups(
    corpus: Callable[..., TaskFile], request_: EmbedRequest, tiny_encoder: Encoder
) -> None:
    rows = [{"text": "ba be " * (i % 9), "n": i, "label": i / 3} for i in range(100)]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink, row_group_size=13)
    file = corpus("x.parquet", sink.getvalue().to_pybytes())
    whole = as_a_whole(file, request_, tiny_encoder)
    assert whole.rejected_by_reason == {"empty_text": 12}
    assert [len(parts_of(file, outputs(file, "none")[0], n)) for n in (1, 2, 8, 50)] == [0, 2, 8, 8]
    for n in (2, 3, 8):
        check_equal(in_parts(file, n, request_, tiny_encoder), whole)


def test_an_interrupted_part_goes_on(
    corpus: Callable[..., TaskFile], request_: EmbedRequest, tiny_encoder: Encoder
) -> None:
    file = corpus()
    output, _ = outputs(file, "in 3")
    parts = parts_of(file, output, 3)
    with pytest.raises(StoppedError):
        embed_part(parts[1], output, request_, Stopping(tiny_encoder, 3 * WINDOW))
    first = embed_part(parts[0], output, request_, tiny_encoder)
    assert n_parts_before(output) == 3
    assert parts_of(file, output, 8) == parts  # as the file was divided, whatever is wanted now
    encoder = Stopping(tiny_encoder)
    second = embed_part(parts[1], output, request_, encoder)
    assert 2 * WINDOW <= second.resumed < second.documents
    assert embed_part(parts[1], output, request_, encoder) == EmbedReport(
        *("a/x.jsonl (2 of 3)", second.output, "skipped"),
        **{name: getattr(second, name) for name in ("lines", "documents", "rejected", "blank", "truncated",
                                                    "duplicate_ids", "tokens", "rejected_by_reason")},
    )  # fmt: skip
    n_before = encoder.n_encoded
    joined = embed_in_parts(file, *outputs(file, "in 3"), request_, encoder)  # makes the part that is missing
    assert encoder.n_encoded - n_before == joined.documents - first.documents - second.documents
    whole = as_a_whole(file, request_, tiny_encoder)
    check_equal(joined, whole)


def test_a_file_that_was_begun_as_a_whole_is_not_divided(
    corpus: Callable[..., TaskFile], request_: EmbedRequest, tiny_encoder: Encoder
) -> None:
    file = corpus()
    output, rejects = outputs(file, "out")
    assert len(parts_of(file, output, 4)) == 4
    with pytest.raises(StoppedError):
        embed_file(file, output, rejects, request_, Stopping(tiny_encoder, 3 * WINDOW))  # type: ignore[arg-type]
    assert parts_of(file, output, 4) == []


def test_a_source_that_changes_between_its_parts(
    corpus: Callable[..., TaskFile], request_: EmbedRequest, tiny_encoder: Encoder, caplog: pytest.LogCaptureFixture
) -> None:
    file = corpus()
    output, _ = outputs(file, "in 3")
    for part in parts_of(file, output, 3)[:2]:
        embed_part(part, output, request_, tiny_encoder)
    file.path.write_bytes(file.path.read_bytes().replace(b"ba be", b"bo bu"))
    report = in_parts(file, 3, request_, tiny_encoder)
    assert caplog.text.count(f"{file.path} changed") == 2
    check_equal(report, as_a_whole(file, request_, tiny_encoder))


@pytest.mark.parametrize("group_rows", [13, 9, 60])
def test_parquet_that_changes_between_its_parts(
    corpus: Callable[..., TaskFile],
    request_: EmbedRequest,
    tiny_encoder: Encoder,
    caplog: pytest.LogCaptureFixture,
    group_rows: int,
) -> None:
    """Also to other row groups, and to fewer than there are parts."""

    def write(word: str, group_rows: int) -> bytes:
        sink = pa.BufferOutputStream()
        rows = [{"text": f"{word} be " * (1 + i % 9), "n": i, "label": i / 3} for i in range(100)]
        pq.write_table(pa.Table.from_pylist(rows), sink, row_group_size=group_rows)
        return sink.getvalue().to_pybytes()

    file = corpus("x.parquet", write("ba", 13))
    output, _ = outputs(file, "in 3")
    for part in parts_of(file, output, 3)[:2]:
        embed_part(part, output, request_, tiny_encoder)
    file.path.write_bytes(write("bo", group_rows))
    report = in_parts(file, 3, request_, tiny_encoder)
    assert caplog.text.count(f"{file.path} changed") == 2
    check_equal(report, as_a_whole(file, request_, tiny_encoder))


@pytest.mark.parametrize("damage", ["cut short", "another request", "of other lines"])
def test_a_part_that_does_not_fit_is_made_again(
    damage: str, corpus: Callable[..., TaskFile], request_: EmbedRequest, tiny_encoder: Encoder
) -> None:
    file = corpus()
    output, _ = outputs(file, "in 3")
    parts = parts_of(file, output, 3)
    for part in parts:
        embed_part(part, output, request_, tiny_encoder)
    path, _ = part_outputs(output, parts[1].part)
    if damage == "cut short":
        os.truncate(path, path.stat().st_size // 2)
    elif damage == "another request":
        other = dataclasses.replace(request_, schema=DocumentSchema(("text",)))
        path.unlink()
        embed_part(parts[1], output, other, tiny_encoder)
    else:  # as by another version of a decompressor
        with h5py.File(path, "r+") as opened:
            source = json.loads(opened["train"].attrs["source"])
            source["lines"][0] += 1
            opened["train"].attrs["source"] = json.dumps(source)
    encoder = Stopping(tiny_encoder)
    report = embed_in_parts(file, *outputs(file, "in 3"), request_, encoder)  # type: ignore[arg-type]
    assert encoder.n_encoded > 0
    check_equal(report, as_a_whole(file, request_, tiny_encoder))
    assert n_parts_before(output) == 0


def test_the_limit_on_rejected_lines_is_of_the_whole_file(
    corpus: Callable[..., TaskFile], request_: EmbedRequest, tiny_encoder: Encoder
) -> None:
    bad = b"\n".join([b"{broken"] * 50 + [b'{"text": "ba", "n": 1, "label": 2}'] * 400)
    file = corpus("x.jsonl", bad)
    strict = dataclasses.replace(request_, max_rejected_fraction=0.1)
    with pytest.raises(SourceError, match=r"50 of 450 lines are rejected \(50 not_json; first: line 1: .*0\.1; check"):
        in_parts(file, 4, strict, tiny_encoder)
    output, rejects = outputs(file, "in 4")
    assert not output.exists() and not rejects.exists() and n_parts_before(output) == 4
    report = in_parts(file, 4, dataclasses.replace(request_, max_rejected_fraction=0.2), Stopping(tiny_encoder, 0))
    assert (report.documents, report.rejected) == (400, 50)


def test_a_rejects_file_of_an_earlier_run_goes(
    corpus: Callable[..., TaskFile], request_: EmbedRequest, tiny_encoder: Encoder
) -> None:
    file = corpus("x.jsonl", b'{"text": "ba", "n": 1, "label": 2}\n' * 40)
    _, rejects = outputs(file, "in 2")
    rejects.parent.mkdir(parents=True)
    rejects.write_text("old")
    assert in_parts(file, 2, request_, tiny_encoder).documents == 40
    assert not rejects.exists()


def test_parts_of_a_finished_file_are_leftovers(
    corpus: Callable[..., TaskFile], request_: EmbedRequest, tiny_encoder: Encoder
) -> None:
    """As after a kill between the last rename and the removal of the parts."""
    file = corpus()
    output, rejects = outputs(file, "in 3")
    for part in parts_of(file, output, 3):
        embed_part(part, output, request_, tiny_encoder)
    folder = part_outputs(output, Part(1, 3))[0].parent
    shutil.copytree(folder, file.folder.parent / "kept")
    assert remove_leftovers(output.parent) == 0
    assert n_parts_before(output) == 3
    embed_in_parts(file, output, rejects, request_, tiny_encoder)
    shutil.copytree(file.folder.parent / "kept", folder)
    os.utime(folder, ns=(0, 0))
    assert remove_leftovers(output.parent) == 1
    assert not folder.exists() and output.exists()
    folder.mkdir()  # as by a claim of another run
    assert remove_leftovers(output.parent) == 1
    assert not folder.exists()


def test_the_report_of_a_joined_file_has_what_its_parts_took() -> None:
    def report(name: str, documents: int, **changes: Any) -> EmbedReport:
        zeros = dict.fromkeys(("lines", "rejected", "blank", "truncated", "duplicate_ids", "tokens"), 0)
        return EmbedReport(name, name, changes.pop("status", "embedded"), documents=documents, **zeros, **changes)

    parts = [
        report("x (1 of 3)", 10, status="skipped"),
        report("x (2 of 3)", 20, resumed=5, started=100.0, seconds=50.0, worker="a", waited={"reading": 1.0}),
        report("x (3 of 3)", 30, started=90.0, seconds=70.0, worker="b", waited={"reading": 2.0}),
    ]
    joined = report("x", 60, seconds=1.0, started=200.0, worker="c").with_parts(parts)
    assert (joined.documents, joined.resumed, joined.started, joined.worker) == (60, 15, 90.0, "2 workers")
    assert joined.waited == {"reading": 3.0}
    assert joined.started + joined.seconds > 1e9  # now
    assert report("x", 60, seconds=1.0).with_parts(parts[:1]) == report("x", 60, seconds=1.0)
