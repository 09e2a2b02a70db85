"""Documents in chunks through embedding, scoring and verification, compared with texts that are divided by hand."""

import dataclasses
import json
import logging
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from mlfilter_core.annotating.annotate_file import annotate_file
from mlfilter_core.annotating.annotate_request import AnnotateRequest, finished_annotation
from mlfilter_core.corpus.documents import DocumentSchema
from mlfilter_core.corpus.source_files import SOURCE_SUFFIXES
from mlfilter_core.embedding.embed_file import embed_file
from mlfilter_core.embedding.embed_report import EmbedReport
from mlfilter_core.embedding.embed_request import EmbedRequest, finished_embedding
from mlfilter_core.embedding_store.describe import describe
from mlfilter_core.embedding_store.reader import EmbeddingFile
from mlfilter_core.encoder.encoder import Encoder, TokenizedTexts
from mlfilter_core.encoder.loading import load_encoder
from mlfilter_core.encoder.model_files import ModelFiles
from mlfilter_core.encoder.settings import Chunks, EncoderSettings
from mlfilter_core.errors import ConfigError, EmbeddingFileError, OutputConflictError, TrainingError
from mlfilter_core.files.task_files import TaskFile, find_files
from mlfilter_core.heads.chunk_scores import ChunkCombination
from mlfilter_core.heads.head import Head, score
from mlfilter_core.notebook import embed_texts
from mlfilter_core.training.labelled_rows import find_labelled_rows
from mlfilter_core.verification.annotated_files import check_annotations
from mlfilter_core.verification.embedding_files import check_embeddings
from mlfilter_core.verification.output_kinds import RelatedFiles, VerifyRequest
from mlfilter_core.work.progress import Progress, heard_by
from tests.conftest import WriteLines, limit_memory

SETTINGS = EncoderSettings(max_length=8, chunks=Chunks(most=4))
ROOM = 6  # words of one letter in a chunk, beside two special tokens
N_WORDS = [1, 6, 7, 24, 25, 13, 100, 2, 12, 18]
N_CHUNKS = [1, 1, 2, 4, 4, 3, 4, 1, 2, 3]
LETTERS = "abcdefghijklmnopqrstuvwxyz"
Embed = Callable[..., EmbedReport]


def words(n: int, first: int) -> list[str]:
    return [LETTERS[(first + i * 7) % 26] for i in range(n)]


DOCUMENTS = [words(n, i) for i, n in enumerate(N_WORDS)]
RECORDS = [{"id": f"d{i}", "text": " ".join(document), "label": i} for i, document in enumerate(DOCUMENTS)]
CHUNKS = [" ".join(document[i : i + ROOM]) for document in DOCUMENTS for i in range(0, min(len(document), 24), ROOM)]


@pytest.fixture
def chunking(tiny_files: ModelFiles) -> Encoder:
    return load_encoder(tiny_files, SETTINGS, "cpu", 512)


@pytest.fixture
def source(write_lines: WriteLines) -> Path:
    return write_lines("corpus/x.jsonl", [*RECORDS[:3], b"{broken", *RECORDS[3:]])


@pytest.fixture
def request_(tiny_files: ModelFiles) -> EmbedRequest:
    return EmbedRequest(tiny_files, SETTINGS, DocumentSchema(("text",), label_keys="label"), commit_documents=3)


@pytest.fixture
def embed(source: Path, request_: EmbedRequest, chunking: Encoder) -> Embed:
    """Embeds the source; keywords change the request."""

    def run(encoder: Encoder = chunking, **changes: Any) -> EmbedReport:
        request = dataclasses.replace(request_, encoder=encoder.settings, **changes)
        (file,) = find_files(source.parent, source.name, SOURCE_SUFFIXES)
        return embed_file(file, output(source), folder(source) / "rejected/x.jsonl", request, encoder)

    return run


def folder(source: Path) -> Path:
    return source.parent.parent / "out"


def output(source: Path) -> Path:
    return folder(source) / "embeddings/x.h5"


def read(source: Path) -> tuple[list[int], Any]:
    with EmbeddingFile(output(source), "train") as file:
        rows = slice(0, file.n_rows)
        return np.diff(file.chunk_starts(rows), append=file.n_chunks).tolist(), file.embeddings(rows)


def test_each_chunk_has_the_embedding_of_its_text(source: Path, embed: Embed, tiny_encoder: Encoder) -> None:
    report = embed()
    n_chunks, embeddings = read(source)
    assert n_chunks == N_CHUNKS
    np.testing.assert_allclose(embeddings, embed_texts(tiny_encoder, CHUNKS), atol=1e-5)
    assert (report.lines, report.documents, report.rejected, report.chunks) == (11, 10, 1, len(CHUNKS))
    assert report.truncated == 2  # 25 and 100 words
    assert report.tokens == sum(2 + min(n, 24) for n in N_WORDS)
    assert "10 documents have 25 chunks" in EmbedReport.remarks_on([report])


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 0), ("float16", 1e-3), ("int8", 2e-2)])
@pytest.mark.parametrize("writer_batch_size", [1, 3, 1024])
def test_chunks_are_read_by_any_slice_of_documents(
    source: Path, embed: Embed, dtype: str, tolerance: float, writer_batch_size: int
) -> None:
    embed()
    _, expected = read(source)
    embed(embedding_dtype=dtype, writer_batch_size=writer_batch_size)
    ends = np.cumsum(N_CHUNKS)
    with EmbeddingFile(output(source), "train") as file:
        assert (file.n_rows, file.n_chunks, file.has_chunks) == (10, 25, True)
        for start in range(11):
            for stop in range(start, 11):
                starts = file.chunk_starts(slice(start, stop))
                assert starts.tolist() == (ends[start:stop] - N_CHUNKS[start:stop] - sum(N_CHUNKS[:start])).tolist()
                of_slice = expected[sum(N_CHUNKS[:start]) : sum(N_CHUNKS[:stop])]
                np.testing.assert_allclose(file.embeddings(slice(start, stop)), of_slice, atol=tolerance)
        # Whole documents with 5 embeddings at most; a document with more would have a slice of its own.
        assert [(rows.start, rows.stop) for rows in file.slices(5)] == [(0, 3), (3, 4), (4, 5), (5, 6), (6, 8), (8, 10)]
        assert [rows.stop for rows in file.slices(1)] == list(range(1, 11))
        assert file.find("first_chunk") is None  # not a value of documents


def test_a_document_with_too_many_chunks_is_rejected_where_truncation_is_off(
    embed: Embed, tiny_files: ModelFiles, source: Path
) -> None:
    settings = dataclasses.replace(SETTINGS, truncate=False)
    report = embed(load_encoder(tiny_files, settings, "cpu", 512))
    assert report.rejected_by_reason == {"not_json": 1, "too_many_tokens": 2}
    lines = map(json.loads, (folder(source) / "rejected/x.jsonl").read_text().splitlines())
    assert "more than params.chunks allows, 26 tokens, and truncation is off" in {line["detail"] for line in lines}
    assert read(source)[0] == [1, 1, 2, 4, 3, 1, 2, 3]


def test_a_document_of_which_one_chunk_does_not_fit_in_memory_is_a_rejected_line(
    embed: Embed, tiny_files: ModelFiles, source: Path
) -> None:
    report = embed(limit_memory(load_encoder(tiny_files, SETTINGS, "cpu", 64), 7))
    assert report.rejected_by_reason == {"not_json": 1, "out_of_memory": 8}
    assert read(source)[0] == [1, 1]


def test_an_interrupted_file_is_resumed_with_its_chunks(
    source: Path, embed: Embed, chunking: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed()
    _, expected = read(source)
    output(source).unlink()
    encode, n_windows = chunking.encode, 0

    def breaking(tokens: TokenizedTexts, *args: Any) -> Any:
        nonlocal n_windows
        n_windows += 1
        if n_windows == 4:
            raise KeyboardInterrupt
        return encode(tokens, *args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(chunking, "encode", breaking)
        embed()
    report = embed()
    assert report.resumed > 0
    n_chunks, embeddings = read(source)
    assert n_chunks == N_CHUNKS
    np.testing.assert_array_equal(embeddings, expected)


def test_progress_counts_documents(embed: Embed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlfilter_core.work.progress.TELL_S", 0)
    heard: list[Progress] = []
    with heard_by(heard.append):
        report = embed(batch_size=1)
    assert max(progress.documents for progress in heard) == 10
    assert heard[-1].share == 1
    assert heard[-1].tokens == pytest.approx(report.tokens, abs=len(heard))  # rounded in each batch


def test_other_chunks_are_another_request(source: Path, embed: Embed, request_: EmbedRequest) -> None:
    embed()
    (file,) = find_files(source.parent, source.name, SOURCE_SUFFIXES)
    finished = finished_embedding(file, output(source), request_)
    assert finished is not None and finished.chunks == 25
    for chunks, difference in ((Chunks(most=5), "chunks.most: 4 in the file, 5"), (None, "chunks")):
        other = dataclasses.replace(request_, encoder=dataclasses.replace(SETTINGS, chunks=chunks))
        with pytest.raises(OutputConflictError, match=difference):
            finished_embedding(file, output(source), other)


def test_the_file_is_described_with_its_chunks(source: Path, embed: Embed) -> None:
    embed()
    text = describe(output(source), "train")
    assert "embeddings  25 x 32, all finite, of 10 documents" in text
    assert "first_chunk" in text


def scored(source: Path, heads: list[Head], **changes: Any) -> list[dict[str, Any]]:
    request = annotation(source, heads, **changes)
    annotate_file(embedding_file(source), request, heads)
    return [json.loads(line) for line in request.output(embedding_file(source)).read_text().splitlines()]


def annotation(source: Path, heads: list[Head], **changes: Any) -> AnnotateRequest:
    return AnnotateRequest(folder(source) / "annotated_data", {head.name: "0" * 64 for head in heads}, **changes)


def embedding_file(source: Path) -> TaskFile:
    return TaskFile("x.h5", "x", output(source).parent)


@pytest.mark.parametrize("batch_size", [1, 7, 2048])
@pytest.mark.parametrize("way", ["mean", "max", "top_k_mean", "first"])
def test_the_score_of_a_document_is_combined_from_those_of_its_chunks(
    source: Path, embed: Embed, heads: list[Head], way: Any, batch_size: int
) -> None:
    embed()
    combine = ChunkCombination(way, top_k=2)
    keys = ("document_id", "label", "score_quality_chunks")
    records = scored(source, heads, combine=combine, batch_size=batch_size, output_keys=keys)
    assert [record["document_id"] for record in records] == [f"d{i}" for i in range(10)]
    outputs = score(heads, read(source)[1])
    of_document = np.split(outputs, np.cumsum(N_CHUNKS)[:-1])
    for record, chunks in zip(records, of_document, strict=True):
        quality = chunks[:, 0]
        np.testing.assert_allclose(record["score_quality_chunks"], quality, atol=1e-5)
        ways: dict[str, Any] = {"mean": np.mean, "max": np.max, "first": lambda scores: scores[0]}
        ways["top_k_mean"] = lambda scores: np.mean(np.sort(scores)[-2:])
        assert record["score_quality"] == pytest.approx(float(ways[way](quality)), abs=1e-5)
        assert record["score_topics_1"] == pytest.approx(float(ways[way](chunks[:, 2])), abs=1e-5)


def test_another_combination_is_another_request(source: Path, embed: Embed, heads: list[Head]) -> None:
    embed()
    scored(source, heads)
    assert finished_annotation(embedding_file(source), annotation(source, heads)) is not None
    with pytest.raises(OutputConflictError, match=r"score_combine: not in the file, 'max' asked for|score_combine"):
        finished_annotation(embedding_file(source), annotation(source, heads, combine=ChunkCombination("max")))


def test_a_score_that_is_not_finite_is_of_the_chunks_document(source: Path, embed: Embed, heads: list[Head]) -> None:
    embed()
    with h5py.File(output(source), "a") as file:
        file["train/embeddings"][5] = np.inf  # of the fourth document, which begins at 4
    with pytest.raises(Exception, match=r"row 3 \(document d3\)"):
        scored(source, heads)
    with pytest.raises(EmbeddingFileError, match=r"the embedding of row 3 has length inf"):
        describe(output(source), "train")


def test_the_files_of_one_job_have_the_same_chunks(
    source: Path, embed: Embed, heads: list[Head], tiny_files: ModelFiles, write_lines: WriteLines
) -> None:
    from mlfilter_core.embedding_store.fingerprint import OneEncoder, fingerprint

    one = OneEncoder()
    embed()
    with EmbeddingFile(output(source), "train") as file:
        one.check(output(source), fingerprint(file.provenance))
    embed(load_encoder(tiny_files, EncoderSettings(max_length=8), "cpu", 512))
    with EmbeddingFile(output(source), "train") as file, pytest.raises(ConfigError, match=r"they differ in chunks \("):
        one.check(output(source), fingerprint(file.provenance))


def test_a_head_is_not_trained_on_chunks(source: Path, embed: Embed) -> None:
    embed()
    with pytest.raises(TrainingError, match=r"embed the labelled documents without params\.chunks"):
        find_labelled_rows([output(source)], "train", None, None, None)


def test_a_notebook_gets_no_chunks_instead_of_texts(chunking: Encoder) -> None:
    with pytest.raises(ValueError, match="divides texts into chunks"):
        embed_texts(chunking, ["a"])


def verified(source: Path) -> Sequence[str]:
    request = VerifyRequest(folder(source))
    return check_embeddings("embeddings/x.h5", request, RelatedFiles()).problems


def test_an_untouched_file_is_right(source: Path, embed: Embed) -> None:
    embed()
    assert verified(source) == ()


def verified_annotation(source: Path) -> Sequence[str]:
    request = VerifyRequest(folder(source))
    return check_annotations("annotated_data/x.jsonl", request, RelatedFiles(("embeddings/x.h5",))).problems


def test_lists_of_scores_are_right(source: Path, embed: Embed, heads: list[Head]) -> None:
    embed()
    scored(source, heads, output_keys=("document_id", "score_quality_chunks"))
    assert verified_annotation(source) == ()


@pytest.mark.parametrize("value", [b"[]", b"null", b"1.0", b"[1.0,null]", b'["1"]'])
def test_lists_that_are_not_of_scores_are_named(source: Path, embed: Embed, heads: list[Head], value: bytes) -> None:
    embed()
    scored(source, heads, output_keys=("document_id", "score_quality_chunks"))
    path = folder(source) / "annotated_data/x.jsonl"
    path.write_bytes(re.sub(rb'(?<="score_quality_chunks":)\[[^]]*\]', value, path.read_bytes(), count=1))
    problem = f"line 1: score_quality_chunks is {value.decode()}, not a list of finite numbers"
    assert problem in " ".join(verified_annotation(source))


@pytest.mark.parametrize(
    ("places", "problem"),
    [
        ([0, 1, 2, 4, 8, 12, 15, 19, 20], "document_id has 10 rows, first_chunk 9"),
        ([0, 1, 2, 4, 4, 12, 15, 19, 20, 22], "first_chunk does not give each document its own embeddings"),
        ([1, 2, 3, 4, 8, 12, 15, 19, 20, 22], "first_chunk does not give each document its own embeddings"),
        ([0, 1, 2, 4, 8, 12, 15, 19, 20, 25], "first_chunk does not give each document its own embeddings"),
        ([0, 1, 2, 4, 8, 12, 15, 19, 20, 10**12], "first_chunk does not give each document its own embeddings"),
        (
            np.array([*(i << 61 for i in range(8)), 8, 9], np.uint64),
            "first_chunk does not give each document its own embeddings",
        ),
        (np.array([], np.int64), "not a whole number for each document, and documents have 25 embeddings"),
        (list(range(26)), "not a whole number for each document, and documents have 25 embeddings"),
        ([float(i) for i in range(10)], "first_chunk is float64 (10,), not a whole number for each document"),
        (None, "document_id has 10 rows, embeddings 25"),
    ],
)
def test_impossible_chunks_are_named(source: Path, embed: Embed, places: Any, problem: str) -> None:
    embed()
    with h5py.File(output(source), "a") as file:
        del file["train/first_chunk"]
        if places is not None:
            file["train/first_chunk"] = np.asarray(places)
    assert problem in " ".join(verified(source))
    with pytest.raises(EmbeddingFileError), EmbeddingFile(output(source), "train") as opened:
        opened.embeddings(slice(0, opened.n_rows))


def test_stated_chunks_are_counted(source: Path, embed: Embed) -> None:
    embed()
    with h5py.File(output(source), "a") as file:
        counts = json.loads(file["train"].attrs["counts"])
        file["train"].attrs["counts"] = json.dumps({**counts, "chunks": 24})
    assert "it states 24 chunks, and has 25 embeddings" in verified(source)[0]


def test_the_log_says_how_documents_are_divided(tiny_files: ModelFiles, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        load_encoder(tiny_files, EncoderSettings(max_length=8, chunks=Chunks(2, 5)), "cpu", 512)
    assert "at most 5 chunks of 8 tokens, 2 of them shared" in caplog.text
