import base64
import dataclasses
import gzip
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Dense, Pooling
from tokenizers import processors

from mlfilter_core.corpus.documents import DocumentSchema, hash_text
from mlfilter_core.corpus.source_files import SOURCE_SUFFIXES
from mlfilter_core.embedding.embed_file import embed_file
from mlfilter_core.embedding.embed_report import EmbedReport
from mlfilter_core.embedding.embed_request import EmbedRequest, finished_embedding
from mlfilter_core.embedding_store.reader import EmbeddingFile
from mlfilter_core.encoder.encoder import Encoder, TokenizedTexts
from mlfilter_core.encoder.loading import load_encoder
from mlfilter_core.encoder.model_files import ModelFiles, resolve_model
from mlfilter_core.encoder.settings import EncoderSettings
from mlfilter_core.errors import OutputConflictError, SourceError
from mlfilter_core.files.task_files import TaskFile, find_files
from mlfilter_core.work.progress import Progress, heard_by
from tests.conftest import TINY_DIM, TINY_MAX_LENGTH, WriteLines, limit_memory, tiny_bert, tiny_tokenizer

ALL = slice(None)
TEXTS = [("ba " * (i * 7 % 23) + f"document {i}") for i in range(23)]  # many lengths in no order
Embed = Callable[..., EmbedReport]


@pytest.fixture
def text_request(tiny_files: ModelFiles) -> EmbedRequest:
    return EmbedRequest(tiny_files, EncoderSettings(), DocumentSchema(("text",)))


@pytest.fixture
def embed(text_request: EmbedRequest, tiny_encoder: Encoder) -> Embed:
    """Embeds a file with the tiny encoder; keywords change the request."""

    def run(path: Path, encoder: Encoder = tiny_encoder, **changes: Any) -> EmbedReport:
        request = dataclasses.replace(text_request, encoder=encoder.settings, **changes)
        return embed_file(source_of(path), output_of(path), rejects_of(path), request, encoder)

    return run


def source_of(path: Path) -> TaskFile:
    (source,) = find_files(path.parent, path.name, SOURCE_SUFFIXES)
    return source


def output_of(path: Path) -> Path:
    return source_of(path).output(path.parent / "out", ".h5")


def rejects_of(path: Path) -> Path:
    return source_of(path).output(path.parent / "out/rejected", ".jsonl")


def read_rejects(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in rejects_of(path).read_text().splitlines()]


def written(path: Path) -> list[str]:
    return sorted(file.name for file in (path.parent / "out").rglob("*") if file.is_file())


def test_every_line_is_a_document_a_rejection_or_blank(write_lines: WriteLines, embed: Embed) -> None:
    overlong = b'{"text": "' + b"x" * 3000 + b'"}'
    lines: list[Any] = [
        {"id": "a", "text": "one"},
        b"",
        b"{broken",
        {"id": "b", "text": "two"},
        b" \t ",
        {"id": "c"},
        overlong,
        b'{"text": "caf\xe9"}',
        {"id": "d", "text": "three"},
        {"id": "e", "text": ""},
    ]
    path = write_lines("x.jsonl", lines)
    report = embed(path, max_line_bytes=1024)
    assert (report.lines, report.documents, report.rejected, report.blank) == (10, 3, 5, 2)
    reasons = ["not_json", "missing_key", "line_too_long", "not_utf8", "empty_text"]
    assert report.rejected_by_reason == dict.fromkeys(sorted(reasons), 1)
    rejected = read_rejects(path)
    assert [(line["line"], line["reason"]) for line in rejected] == list(zip([3, 6, 7, 8, 10], reasons, strict=True))
    assert rejected[2]["detail"] == "the line is longer than params.max_line_bytes, 1024 bytes"
    source_lines = path.read_bytes().split(b"\n")
    for line in rejected:
        kept = line["raw"].encode() if "raw" in line else base64.b64decode(line["raw_base64"])
        assert kept == source_lines[line["line"] - 1]
        assert path.read_bytes()[line["offset"] :].startswith(kept)
    with EmbeddingFile(output_of(path), "train") as file:
        assert file.column("document_id", ALL) == ["a", "b", "d"]
        assert file.array("source_line", ALL).tolist() == [1, 4, 9]


@pytest.mark.parametrize(
    "changes",
    [{}, {"batch_size": 1}, {"batch_size": 4, "writer_batch_size": 3}, {"writer_batch_size": 1}],
    ids=str,
)
@pytest.mark.parametrize("window", [4096, 5])
def test_row_i_is_document_i_whatever_the_windows_and_batches(
    write_lines: WriteLines,
    embed: Embed,
    tiny_encoder: Encoder,
    monkeypatch: pytest.MonkeyPatch,
    window: int,
    changes: dict[str, int],
) -> None:
    monkeypatch.setattr("mlfilter_core.corpus.windows.WINDOW_DOCUMENTS", window)
    path = write_lines("x.jsonl", [{"id": i, "text": text} for i, text in enumerate(TEXTS)])
    report = embed(path, **changes)
    tokenized = tiny_encoder.tokenize(TEXTS)
    assert report.documents == len(TEXTS)
    assert report.tokens == tokenized.n_tokens.sum()
    with EmbeddingFile(output_of(path), "train") as file:
        np.testing.assert_allclose(file.embeddings(ALL), tiny_encoder.encode(tokenized).embeddings(), atol=1e-5)
        assert file.array("n_tokens", ALL).tolist() == tokenized.n_tokens.tolist()
        assert file.column("document_id", ALL) == [str(i) for i in range(len(TEXTS))]
        assert file.array("source_line", ALL).tolist() == list(range(1, len(TEXTS) + 1))


@pytest.fixture
def window_sizes(tiny_encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The documents of each window that is tokenized."""
    sizes: list[int] = []
    tokenize = tiny_encoder.tokenize
    monkeypatch.setattr(tiny_encoder, "tokenize", lambda texts: (sizes.append(len(texts)), tokenize(texts))[1])
    return sizes


def test_a_window_of_long_texts_ends_before_its_number_of_documents(
    write_lines: WriteLines, embed: Embed, window_sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlfilter_core.corpus.windows.WINDOW_BYTES", 16 * 100)
    embed(write_lines("x.jsonl", [{"text": "a" * 60} for _ in range(9)]))
    assert window_sizes == [2, 3, 4]


def test_the_first_windows_are_small_so_that_the_encoder_soon_has_work(
    write_lines: WriteLines, embed: Embed, window_sizes: list[int]
) -> None:
    embed(write_lines("x.jsonl", [{"text": f"number {i}"} for i in range(12_300)]))
    assert window_sizes == [256, 512, 1024, 2048, 4096, 4096, 268]


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_offsets_lead_to_the_documents_line(write_lines: WriteLines, embed: Embed, suffix: str) -> None:
    lines = [json.dumps({"text": text}).encode() + b"\r" for text in ["one", "größer", "three"]]
    path = write_lines(f"x.jsonl{suffix}", [b"\r", *lines])
    report = embed(path)
    assert (report.documents, report.blank) == (3, 1)
    content = b"\r\n" + b"".join(line + b"\n" for line in lines)
    with EmbeddingFile(output_of(path), "train") as file:
        offsets = file.array("source_offset", ALL).tolist()
        assert [content[offset:].split(b"\n")[0] for offset in offsets] == lines
        assert file.column("document_id", ALL) == [f"x.jsonl{suffix}:{line}" for line in (2, 3, 4)]


@pytest.mark.parametrize("content", [b"", b"\n\n", gzip.compress(b"", mtime=0)])
def test_a_source_without_documents_gives_a_valid_file_without_rows(
    tmp_path: Path, embed: Embed, text_request: EmbedRequest, content: bytes
) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(content)
    report = embed(path)
    assert (report.documents, report.rejected) == (0, 0)
    assert written(path) == ["x.h5"]
    with EmbeddingFile(output_of(path), "train") as file:
        assert (file.n_rows, file.dim) == (0, TINY_DIM)
    assert finished_embedding(source_of(path), output_of(path), text_request) is not None


def test_duplicate_ids_are_counted_and_kept(
    write_lines: WriteLines, embed: Embed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlfilter_core.corpus.windows.WINDOW_DOCUMENTS", 2)
    path = write_lines("x.jsonl", [{"id": id_, "text": "a"} for id_ in ("a", "b", "a", "c", "a", "b")])
    assert embed(path).duplicate_ids == 3
    with EmbeddingFile(output_of(path), "train") as file:
        assert file.column("document_id", ALL) == ["a", "b", "a", "c", "a", "b"]


def test_labels_and_index_values_stand_beside_the_embeddings(write_lines: WriteLines, embed: Embed) -> None:
    schema = DocumentSchema(("text",), "key", ("text", "n"), "score", "int8")
    records: list[Any] = [
        {"key": "a", "text": "one", "n": 1, "score": 3},
        {"key": "b", "text": "two", "n": [2], "score": 1.5},
    ]
    path = write_lines("x.jsonl", [*records, {"key": "c", "text": "three", "n": None, "score": -1}])
    assert embed(path, schema=schema).rejected_by_reason == {"bad_label": 1}
    with EmbeddingFile(output_of(path), "train") as file:
        assert file.array("labels", ALL).tolist() == [3, -1]
        assert file.array("text_hash", ALL).tolist() == [hash_text("one"), hash_text("three")]
        assert file.array("labels", ALL).dtype == np.int8
        assert file.column("index/text", ALL) == ["one", "three"]
        assert file.column("index/n", ALL) == ["1", "null"]


def test_whoever_listens_hears_how_far_the_file_has_come(
    write_lines: WriteLines, embed: Embed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlfilter_core.work.progress.TELL_S", 0)
    heard: list[Progress] = []
    path = write_lines("x.jsonl", [*({"text": "word " * (1 + i % 9)} for i in range(100)), b"{"])
    with heard_by(heard.append):
        report = embed(path, commit_documents=20)
    assert {progress.file for progress in heard} == {"x.jsonl"}
    assert [progress.documents for progress in heard] == sorted(progress.documents for progress in heard)
    assert all(0 < progress.share <= 1 for progress in heard)
    last = heard[-1]
    assert (last.documents, last.tokens, last.rejected, last.committed) == (100, report.tokens, 1, 100)
    assert last.share == 1
    assert set(last.waited) == {"reading", "tokenizing", "encoding", "writing"}
    assert last.max_batch_tokens == 512


def test_long_documents_are_cut_and_counted(write_lines: WriteLines, embed: Embed, tiny_files: ModelFiles) -> None:
    settings = EncoderSettings(max_length=8)
    path = write_lines("x.jsonl", [{"text": "x " * n} for n in (5, 6, 7, 50)])
    report = embed(path, load_encoder(tiny_files, settings, "cpu", 512))
    assert (report.documents, report.truncated, report.tokens) == (4, 2, 7 + 8 + 8 + 8)


def test_a_document_of_50_mb_is_cut_before_it_is_tokenized(
    write_lines: WriteLines, embed: Embed, tiny_encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_chars: list[int] = []
    encode = tiny_encoder._truncating._encode
    monkeypatch.setattr(
        tiny_encoder._truncating, "_encode", lambda texts: (n_chars.extend(map(len, texts)), encode(texts))[1]
    )
    path = write_lines("x.jsonl", [{"id": "a", "text": "word " * 10_000_000}, {"id": "b", "text": "word " * 1000}])
    report = embed(path)
    assert (report.documents, report.truncated, report.tokens) == (2, 2, 2 * TINY_MAX_LENGTH)
    assert max(n_chars) < 1000
    with EmbeddingFile(output_of(path), "train") as file:
        first, second = file.embeddings(ALL)
        np.testing.assert_allclose(first, second, atol=1e-6)


def test_long_documents_are_rejected_where_truncation_is_off(
    write_lines: WriteLines, embed: Embed, tiny_files: ModelFiles, tiny_encoder: Encoder
) -> None:
    settings = EncoderSettings(max_length=8, truncate=False)
    path = write_lines("x.jsonl", [{"id": n, "text": "x " * n} for n in (50, 5, 7, 6)])
    report = embed(path, load_encoder(tiny_files, settings, "cpu", 512))
    assert (report.documents, report.truncated, report.rejected_by_reason) == (2, 0, {"too_many_tokens": 2})
    rejected = read_rejects(path)
    assert [line["line"] for line in rejected] == [1, 3]
    assert rejected[0]["detail"] == "more than params.max_length, 8 tokens, and truncation is off"
    assert json.loads(rejected[1]["raw"]) == {"id": 7, "text": "x " * 7}
    with EmbeddingFile(output_of(path), "train") as file:
        assert file.column("document_id", ALL) == ["5", "6"]
        expected = tiny_encoder.encode(tiny_encoder.tokenize(["x " * 5, "x " * 6])).embeddings()
        np.testing.assert_allclose(file.embeddings(ALL), expected, atol=1e-5)


@pytest.fixture
def short_of_memory(tiny_files: ModelFiles) -> Encoder:
    """An encoder whose device has memory for 40 tokens at most."""
    return limit_memory(load_encoder(tiny_files, EncoderSettings(), "cpu", 160), 40)


def test_a_document_that_does_not_fit_in_memory_alone_is_a_rejected_line(
    write_lines: WriteLines, embed: Embed, short_of_memory: Encoder, tiny_encoder: Encoder
) -> None:
    texts = ["x " * n for n in (30, 20, 50, 10, 45, 12)]
    path = write_lines("x.jsonl", [*({"id": len(text), "text": text} for text in texts), b"broken"])
    report = embed(path, short_of_memory)
    assert (report.documents, report.rejected_by_reason) == (4, {"not_json": 1, "out_of_memory": 2})
    assert report.out_of_memory == 1  # three texts of 52 tokens and less; then one at a time
    rejected = read_rejects(path)
    assert [(line["line"], line["reason"]) for line in rejected] == [
        (3, "out_of_memory"),
        (5, "out_of_memory"),
        (7, "not_json"),
    ]
    assert rejected[0]["detail"] == "the memory of cpu does not suffice for this document alone"
    assert json.loads(rejected[0]["raw"]) == {"id": 100, "text": texts[2]}
    with EmbeddingFile(output_of(path), "train") as file:
        assert file.column("document_id", ALL) == ["60", "40", "20", "24"]
        expected = tiny_encoder.encode(tiny_encoder.tokenize([texts[i] for i in (0, 1, 3, 5)])).embeddings()
        np.testing.assert_allclose(file.embeddings(ALL), expected, atol=1e-5)
        assert file.provenance is not None
        assert file.provenance.counts["out_of_memory"] == 1


def test_a_document_that_does_not_fit_in_memory_fails_its_file_where_that_is_asked_for(
    write_lines: WriteLines, embed: Embed, short_of_memory: Encoder
) -> None:
    path = write_lines("x.jsonl", [{"text": "x"}, {"text": "x " * 50}])
    with pytest.raises(SourceError, match=r"x\.jsonl:2: out_of_memory: the memory of cpu does not suffice"):
        embed(path, short_of_memory, fail_on_bad_record=True)
    assert written(path) == []


def test_a_text_without_tokens_is_a_rejected_line(write_lines: WriteLines, embed: Embed, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.Sequence([])  # no [CLS], no [SEP]
    tokenizer.save_pretrained(tmp_path / "bare")
    tiny_bert(seed=0).save_pretrained(tmp_path / "bare")
    encoder = load_encoder(resolve_model(str(tmp_path / "bare")), EncoderSettings(), "cpu", 512)
    path = write_lines("x.jsonl", [{"id": "a", "text": "one"}, {"id": "b", "text": "\u200b"}, {"id": "c", "text": "x"}])
    report = embed(path, encoder)
    assert (report.documents, report.rejected_by_reason) == (2, {"no_tokens": 1})
    assert [(line["line"], line["detail"]) for line in read_rejects(path)] == [
        (2, "the text has no token of this encoder")
    ]
    with EmbeddingFile(output_of(path), "train") as file:
        assert file.column("document_id", ALL) == ["a", "c"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{broken", r"x\.jsonl:3: not_json: .*; fix the line, or set params\.on_bad_record: reject"),
        (b"x" * 2000, r"x\.jsonl:3: line_too_long: the line is longer than params\.max_line_bytes, 1024 bytes; fix"),
    ],
)
def test_a_bad_line_fails_its_file_where_that_is_asked_for(
    write_lines: WriteLines, embed: Embed, line: bytes, message: str
) -> None:
    path = write_lines("x.jsonl", [{"text": "one"}, {"text": "two"}, line, {"text": "four"}])
    with pytest.raises(SourceError, match=message):
        embed(path, fail_on_bad_record=True, max_line_bytes=1024)
    assert written(path) == []


def test_a_long_document_fails_its_file_where_that_is_asked_for(
    write_lines: WriteLines, embed: Embed, tiny_files: ModelFiles
) -> None:
    settings = EncoderSettings(max_length=8, truncate=False)
    path = write_lines("x.jsonl", [{"text": "one"}, {"text": "x " * 50}])
    with pytest.raises(SourceError, match=r"x\.jsonl:2: too_many_tokens: more than params\.max_length, 8 tokens"):
        embed(path, load_encoder(tiny_files, settings, "cpu", 512), fail_on_bad_record=True)


def test_a_file_without_labels_fails_with_what_helps(write_lines: WriteLines, embed: Embed) -> None:
    path = write_lines("x.jsonl", [{"text": "one"}, {"text": "two"}])
    schema = DocumentSchema(("text",), label_keys=None)
    message = (
        r'2 of 2 lines are rejected \(2 missing_label; first: line 1: neither "label" nor "score" nor "scores\.score" '
        r"is present; the record has: text\), .*; set params\.glob_pattern to the files with labels; or set "
        r"params\.save_labels: false, and give the labels to the training job as labels_path$"
    )
    with pytest.raises(SourceError, match=message):
        embed(path, schema=schema, max_rejected_fraction=0.5)


def test_more_rejected_lines_than_allowed_fail_the_file(write_lines: WriteLines, embed: Embed) -> None:
    path = write_lines("x.jsonl", [{"body": "a"}, {"text": "one"}, b"broken", {"body": "b"}])
    message = (
        r"x\.jsonl: 3 of 4 lines are rejected \(2 missing_key, 1 not_json; first: line 1: \"text\" is missing; the "
        r"record has: body\), more than params\.max_rejected_fraction, 0\.7; check the keys, or raise it"
    )
    with pytest.raises(SourceError, match=message):
        embed(path, max_rejected_fraction=0.7)
    assert written(path) == []
    assert embed(path, max_rejected_fraction=0.75).rejected == 3


def test_the_rejects_of_an_earlier_run_go_when_nothing_is_rejected(write_lines: WriteLines, embed: Embed) -> None:
    path = write_lines("x.jsonl", [{"text": "one"}, b"broken"])
    embed(path)
    assert written(path) == ["x.h5", "x.jsonl"]
    write_lines("x.jsonl", [{"text": "one"}])
    embed(path)
    assert written(path) == ["x.h5"]


def test_a_source_that_grows_while_it_is_read_fails_and_leaves_nothing(
    write_lines: WriteLines, embed: Embed, tiny_encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_lines("x.jsonl", [{"text": "one"}, b"broken"])
    tokenize = tiny_encoder.tokenize

    def append_and_tokenize(texts: Sequence[str]) -> TokenizedTexts:
        with open(path, "ab") as file:
            file.write(b'{"text": "late"}\n')
        return tokenize(texts)

    monkeypatch.setattr(tiny_encoder, "tokenize", append_and_tokenize)
    with pytest.raises(SourceError, match=r"x\.jsonl changed while it was read; run again when it is complete"):
        embed(path)
    assert written(path) == []


def test_windows_line_ends_and_a_byte_order_mark_change_nothing(write_lines: WriteLines, embed: Embed) -> None:
    records = [{"text": text} for text in TEXTS]
    plain = write_lines("plain.jsonl", records)
    marked = plain.with_name("marked.jsonl")
    marked.write_bytes(b"\xef\xbb\xbf" + plain.read_bytes().replace(b"\n", b"\r\n"))
    assert embed(plain).documents == embed(marked).documents == len(TEXTS)
    with EmbeddingFile(output_of(plain), "train") as first, EmbeddingFile(output_of(marked), "train") as second:
        np.testing.assert_array_equal(first.embeddings(ALL), second.embeddings(ALL))
        content = marked.read_bytes()
        for offset, record in zip(second.array("source_offset", ALL), records, strict=True):
            assert content[offset:].removeprefix(b"\xef\xbb\xbf").startswith(json.dumps(record).encode() + b"\r\n")


def test_a_source_that_is_gone_is_named(
    write_lines: WriteLines, text_request: EmbedRequest, tiny_encoder: Encoder
) -> None:
    path = write_lines("x.jsonl", [{"text": "one"}])
    source = source_of(path)
    path.unlink()
    with pytest.raises(SourceError, match=r"x\.jsonl cannot be read \(No such file or directory\)"):
        embed_file(source, path.with_suffix(".h5"), path.with_suffix(".rejected"), text_request, tiny_encoder)


def test_a_broken_compressed_source_fails_and_leaves_nothing(write_lines: WriteLines, embed: Embed) -> None:
    path = write_lines("x.jsonl.gz", [{"text": text} for text in TEXTS] + [b"broken"])
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(SourceError, match=r"x\.jsonl\.gz:\d+: the compressed stream breaks off here"):
        embed(path)
    assert written(path) == []


def test_a_failure_leaves_the_finished_file_of_an_earlier_run(write_lines: WriteLines, embed: Embed) -> None:
    path = write_lines("x.jsonl", [{"text": "one"}])
    embed(path)
    before = output_of(path).read_bytes()
    write_lines("x.jsonl", [{"text": "one"}, b"broken"])
    with pytest.raises(SourceError):
        embed(path, fail_on_bad_record=True)
    assert output_of(path).read_bytes() == before
    assert written(path) == ["x.h5"]


@pytest.fixture
def scaled_encoder(tiny_model: Path, tmp_path: Path) -> Callable[[float], Encoder]:
    """The tiny model with its embeddings multiplied."""

    def load(factor: float) -> Encoder:
        dense = Dense(TINY_DIM, TINY_DIM, bias=False, activation_function=torch.nn.Identity())
        dense.linear.weight.data = factor * torch.eye(TINY_DIM)
        modules = [Transformer(str(tiny_model)), Pooling(TINY_DIM, "mean"), dense]
        SentenceTransformer(modules=modules, device="cpu").save(str(tmp_path / "scaled"), create_model_card=False)
        return load_encoder(resolve_model(str(tmp_path / "scaled")), EncoderSettings(), "cpu", 512)

    return load


@pytest.mark.parametrize(("factor", "dtype"), [(1e6, "float16"), (float("nan"), "float32"), (float("inf"), "float32")])
def test_an_embedding_that_is_not_finite_fails_its_file(
    write_lines: WriteLines, embed: Embed, scaled_encoder: Callable[[float], Encoder], factor: float, dtype: str
) -> None:
    path = write_lines("x.jsonl", [b"broken", {"id": "doc-1", "text": "one"}])
    message = rf"x\.jsonl:2: the embedding of document doc-1 is not finite in float32 stored as {dtype}; use"
    with pytest.raises(SourceError, match=message):
        embed(path, scaled_encoder(factor), embedding_dtype=dtype)
    assert written(path) == []


def test_embeddings_are_stored_in_half_the_bytes_where_that_is_asked_for(
    write_lines: WriteLines, embed: Embed, tiny_encoder: Encoder
) -> None:
    path = write_lines("x.jsonl", [{"text": text} for text in TEXTS])
    embed(path, embedding_dtype="float16")
    with h5py.File(output_of(path)) as f:
        assert f["train/embeddings"].dtype == np.float16
        expected = tiny_encoder.encode(tiny_encoder.tokenize(TEXTS)).embeddings()
        np.testing.assert_allclose(f["train/embeddings"][:], expected, rtol=2e-3, atol=1e-4)


def test_embeddings_are_stored_in_a_quarter_of_the_bytes_where_that_is_asked_for(
    write_lines: WriteLines, embed: Embed, tiny_encoder: Encoder
) -> None:
    path = write_lines("x.jsonl", [{"text": text} for text in TEXTS])
    embed(path, embedding_dtype="int8")
    expected = tiny_encoder.encode(tiny_encoder.tokenize(TEXTS)).embeddings()
    with EmbeddingFile(output_of(path), "train") as file:
        found = file.embeddings(slice(None))
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), np.linalg.norm(expected, axis=1), rtol=1e-5)
    np.testing.assert_allclose(found, expected, atol=np.abs(expected).max() / 127)


def test_the_file_says_where_it_comes_from(write_lines: WriteLines, embed: Embed, tiny_files: ModelFiles) -> None:
    path = write_lines("x.jsonl", [{"text": "one"}, b"broken"])
    report = embed(path)
    with EmbeddingFile(output_of(path), "train") as file:
        made = file.provenance
    assert made is not None
    assert (made.source["path"], made.source["folder"]) == ("x.jsonl", str(path.parent))
    assert (made.source["bytes"], made.source["mtime_ns"]) == (path.stat().st_size, path.stat().st_mtime_ns)
    assert made.request["weights_sha256"] == tiny_files.weights_sha256
    assert made.request["text_keys"] == ["text"]
    assert made.encoder["dim"] == TINY_DIM
    counts = {key: value for key, value in dataclasses.asdict(report).items() if key in made.counts}
    assert made.counts == counts
    assert {"lines", "documents", "rejected", "blank", "duplicate_ids", "truncated", "tokens"} <= set(counts)


@pytest.fixture
def finished(write_lines: WriteLines, embed: Embed) -> tuple[Path, EmbedReport]:
    """An embedded source and its report."""
    path = write_lines("x.jsonl", [{"id": "a", "text": "one"}, b"", b"broken", {"id": "a", "text": "x " * 90}])
    return path, embed(path)


def is_finished(path: Path, request: EmbedRequest) -> EmbedReport | None:
    return finished_embedding(source_of(path), output_of(path), request)


def test_nothing_is_finished_before_it_was_embedded(write_lines: WriteLines, text_request: EmbedRequest) -> None:
    assert is_finished(write_lines("x.jsonl", [{"text": "one"}]), text_request) is None


def test_a_finished_file_is_skipped_with_the_same_counts(
    finished: tuple[Path, EmbedReport], text_request: EmbedRequest
) -> None:
    path, report = finished
    assert (report.status, report.documents, report.rejected, report.blank) == ("embedded", 2, 1, 1)
    assert (report.truncated, report.duplicate_ids) == (1, 1)
    assert set(report.waited) == {"reading", "tokenizing", "encoding", "writing"}
    assert report.encoder == "float32 on cpu, unpadded attention, batches of at most 512 tokens (as asked for)"
    skipped = dataclasses.replace(report, status="skipped", seconds=0.0, waited={}, encoder="")
    assert is_finished(path, text_request) == skipped


@pytest.mark.parametrize(
    "changes",
    [{"batch_size": 1}, {"writer_batch_size": 7}, {"fail_on_bad_record": True}, {"max_rejected_fraction": 0.1}],
    ids=str,
)
def test_what_does_not_change_the_content_is_not_asked_for(
    finished: tuple[Path, EmbedReport], text_request: EmbedRequest, changes: dict[str, Any]
) -> None:
    assert is_finished(finished[0], dataclasses.replace(text_request, **changes)) is not None


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"encoder": EncoderSettings(max_length=8)}, "max_length: None in the file, 8 asked for"),
        ({"encoder": EncoderSettings(prompt="a")}, "prompt: None in the file, 'a' asked for"),
        ({"schema": DocumentSchema(("text",), id_key="id")}, "id_key: None in the file, 'id' asked for"),
        (
            {"schema": DocumentSchema(("title", "text"))},
            r"text_keys: \['text'\] in the file, \['title', 'text'\] asked for",
        ),
        ({"embedding_dtype": "float16"}, "embedding_dtype: 'float32' in the file, 'float16' asked for"),
    ],
)
def test_a_file_of_another_request_is_in_the_way_and_the_difference_is_named(
    finished: tuple[Path, EmbedReport], text_request: EmbedRequest, changes: dict[str, Any], difference: str
) -> None:
    with pytest.raises(
        OutputConflictError, match=rf"x\.h5 was made by another request: {difference}; use another .*overwrite"
    ):
        is_finished(finished[0], dataclasses.replace(text_request, **changes))


def test_another_group_is_another_request(finished: tuple[Path, EmbedReport], text_request: EmbedRequest) -> None:
    with pytest.raises(
        OutputConflictError, match=r'no group "test" .* set params\.hdf5_dataset_name to train; or .*overwrite'
    ):
        is_finished(finished[0], dataclasses.replace(text_request, group="test"))


def test_other_weights_are_another_request(
    finished: tuple[Path, EmbedReport], text_request: EmbedRequest, tiny_model: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "other")
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(
        OutputConflictError, match=r"another request: weights_sha256: \w{12} in the file, \w{12} asked for;"
    ):
        is_finished(finished[0], dataclasses.replace(text_request, model=resolve_model(str(folder))))


def test_a_model_that_moved_is_still_the_same(
    finished: tuple[Path, EmbedReport], text_request: EmbedRequest, tiny_model: Path, tmp_path: Path
) -> None:
    moved = resolve_model(str(shutil.copytree(tiny_model, tmp_path / "moved")))
    assert is_finished(finished[0], dataclasses.replace(text_request, model=moved)) is not None


@pytest.mark.parametrize("old_and_new", [(b"one", b"two"), (b"one", b"longer")], ids=["same size", "other size"])
def test_a_changed_source_is_in_the_way(
    finished: tuple[Path, EmbedReport], text_request: EmbedRequest, old_and_new: tuple[bytes, bytes]
) -> None:
    path = finished[0]
    path.write_bytes(path.read_bytes().replace(*old_and_new))
    os.utime(path, (1, 1))
    with pytest.raises(
        OutputConflictError, match=r"x\.h5 was made from another version of .*x\.jsonl; set params\.overwrite"
    ):
        is_finished(path, text_request)


def test_a_source_that_was_touched_is_for_a_worker_to_read(
    finished: tuple[Path, EmbedReport], text_request: EmbedRequest
) -> None:
    path, _ = finished
    os.utime(path, ns=(0, 0))
    assert finished_embedding(source_of(path), output_of(path), text_request, read_content=False) is None


def test_a_source_that_was_touched_is_still_the_same(
    finished: tuple[Path, EmbedReport], text_request: EmbedRequest
) -> None:
    os.utime(finished[0], (1, 1))
    assert is_finished(finished[0], text_request) is not None


def test_a_file_of_another_tool_is_in_the_way(finished: tuple[Path, EmbedReport], text_request: EmbedRequest) -> None:
    with h5py.File(output_of(finished[0]), "w") as f:
        f["train/embeddings"] = np.ones((2, TINY_DIM), np.float32)
    with pytest.raises(
        OutputConflictError, match=r"x\.h5 was made by another tool; move it away, or set params\.overwrite"
    ):
        is_finished(finished[0], text_request)


def test_a_truncated_file_is_in_the_way(finished: tuple[Path, EmbedReport], text_request: EmbedRequest) -> None:
    output = output_of(finished[0])
    output.write_bytes(output.read_bytes()[:-1000])
    with pytest.raises(
        OutputConflictError, match=r"x\.h5 is not an HDF5 file, or is cut short .*; or set params\.overwrite: true"
    ):
        is_finished(finished[0], text_request)


def test_a_file_in_the_way_is_replaced_when_embedded_again(
    finished: tuple[Path, EmbedReport], embed: Embed, text_request: EmbedRequest
) -> None:
    path, report = finished
    output_of(path).write_bytes(b"in the way")
    assert embed(path).documents == report.documents
    assert is_finished(path, text_request) is not None


EMBED_MANY = """
import sys
from pathlib import Path
from mlfilter_core.corpus.source_files import SOURCE_SUFFIXES
from mlfilter_core.files.task_files import find_files
from mlfilter_core.corpus.documents import DocumentSchema
from mlfilter_core.embedding.embed_file import embed_file
from mlfilter_core.embedding.embed_request import EmbedRequest
from mlfilter_core.encoder.loading import load_encoder
from mlfilter_core.encoder.settings import EncoderSettings
from mlfilter_core.encoder.model_files import resolve_model

request = EmbedRequest(resolve_model(sys.argv[2]), EncoderSettings(), DocumentSchema(("text",)))
encoder = load_encoder(request.model, request.encoder, "cpu", 512)
folder = Path(sys.argv[1])
for n_files, file in enumerate(find_files(folder, "*.jsonl", SOURCE_SUFFIXES), 1):
    embed_file(file, file.output(folder / "out", ".h5"), file.output(folder / "rejected", ".jsonl"), request, encoder)
    if n_files in (20, 200):
        print(Path("/proc/self/statm").read_text().split()[1])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux shows the memory of a process in this way")
def test_memory_does_not_grow_with_the_number_of_files(
    write_lines: WriteLines, tmp_path: Path, tiny_model: Path
) -> None:
    for i in range(200):
        write_lines(f"{i}.jsonl", [{"text": text} for text in TEXTS])
    command = [sys.executable, "-c", EMBED_MANY, str(tmp_path), str(tiny_model)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    after_20_files, after_200_files = map(int, output.split())
    assert after_200_files < 1.03 * after_20_files
