import dataclasses
import gzip
import json
import os
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import orjson
import pytest
import torch
from safetensors.torch import save_file

from mlfilter_core.annotating.annotate_file import annotate_file
from mlfilter_core.annotating.annotate_report import AnnotateReport
from mlfilter_core.annotating.annotate_request import AnnotateRequest, finished_annotation
from mlfilter_core.annotating.annotated_format import SUFFIXES, Compression
from mlfilter_core.config.annotation import Ensemble
from mlfilter_core.corpus.documents import DocumentSchema
from mlfilter_core.corpus.source_files import SOURCE_SUFFIXES
from mlfilter_core.embedding.embed_file import embed_file
from mlfilter_core.embedding.embed_request import EmbedRequest
from mlfilter_core.embedding_store.layout import EMBEDDING_SUFFIXES
from mlfilter_core.embedding_store.reader import EmbeddingFile
from mlfilter_core.encoder.encoder import Encoder
from mlfilter_core.encoder.model_files import ModelFiles
from mlfilter_core.errors import AnnotationError, EmbeddingFileError, HeadError, OutputConflictError, SourceError
from mlfilter_core.files import identity
from mlfilter_core.files.task_files import TaskFile, find_files
from mlfilter_core.files.zstd import zstd
from mlfilter_core.heads.checkpoint_formats import load_head
from mlfilter_core.heads.head import Head, score
from tests.conftest import TINY_DIM, WriteLines

TEXT = DocumentSchema(("text",))
RECORDS: list[Any] = [
    {"id": "a", "text": "one", "meta": {"lang": "de"}, "n": 1, "label": 3},
    b"{broken",
    {"id": "b", "text": "two two two", "meta": {"lang": "en", "url": "u"}, "n": 2.5, "label": 4},
    b"",
    {"id": "c", "text": "größer", "meta": {"lang": "fr"}, "n": None, "label": 5},
]
DOCUMENTS = [record for record in RECORDS if isinstance(record, dict)]
Embed = Callable[..., TaskFile]
Annotate = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def embed(write_lines: WriteLines, tiny_files: ModelFiles, tiny_encoder: Encoder, tmp_path: Path) -> Embed:
    """Writes a source to corpus/, embeds it to embeddings/, and returns the HDF5 file."""

    def run(records: list[Any] = RECORDS, schema: DocumentSchema = TEXT, name: str = "x.jsonl") -> TaskFile:
        write_lines(f"corpus/{name}", records)
        (source,) = find_files(tmp_path / "corpus", name, SOURCE_SUFFIXES)
        request = EmbedRequest(tiny_files, tiny_encoder.settings, schema)
        embed_file(source, source.output(tmp_path / "embeddings", ".h5"), tmp_path / "rejected", request, tiny_encoder)
        return find_embeddings(tmp_path / "embeddings")

    return run


def find_embeddings(folder: Path) -> TaskFile:
    (file,) = find_files(folder, "**/*", EMBEDDING_SUFFIXES)
    return file


COLUMNS = ["score_quality", "score_topics_0", "score_topics_1"]


@pytest.fixture
def make_request(tmp_path: Path, heads: list[Head]) -> Callable[..., AnnotateRequest]:
    def make(**changes: Any) -> AnnotateRequest:
        return AnnotateRequest(tmp_path / "annotated", {head.name: "0" * 64 for head in heads}, **changes)

    return make


@pytest.fixture
def annotate(make_request: Callable[..., AnnotateRequest], heads: list[Head]) -> Annotate:
    """Annotates a file and returns what was written; keywords change the request."""

    def run(file: TaskFile, **changes: Any) -> list[dict[str, Any]]:
        return read(annotate_file(file, make_request(**changes), heads))

    return run


def read(report: AnnotateReport) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in Path(report.output).read_text().splitlines()]
    assert report.documents == len(records)
    return records


def metadata(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the records without their scores, which must come last."""
    assert all(list(record)[-3:] == COLUMNS for record in records)
    return [{key: value for key, value in record.items() if key not in COLUMNS} for record in records]


def written(tmp_path: Path) -> list[str]:
    folder = tmp_path / "annotated"
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("batch_size", [1, 2, 4096])
def test_scores_equal_the_direct_computation(
    embed: Embed, annotate: Annotate, heads: list[Head], batch_size: int
) -> None:
    file = embed([{"id": i, "text": "ba " * i} for i in range(1, 8)])
    records = annotate(file, batch_size=batch_size)
    with EmbeddingFile(file.path, "train") as embeddings:
        expected = score(heads, embeddings.embeddings(slice(None)))
    assert np.ptp(expected, axis=0).min() > 0.1, "the documents are too alike to tell rows apart"
    scores = np.array([[record[column] for column in COLUMNS] for record in records])
    np.testing.assert_allclose(scores, expected, atol=1e-6)
    assert [record["document_id"] for record in records] == list("1234567")


def test_labels_whole_numbers_and_ensembles_are_written_beside_the_scores(
    embed: Embed, annotate: Annotate, make_request: Callable[..., AnnotateRequest], heads: list[Head]
) -> None:
    both = Ensemble(heads=("quality", "topics_0"), combine="max")
    asked = {"ensembles": {"both": both}, "integer_scales": {"quality": (0, 5), "both": (-1, 1)}}
    heads = [heads[0], dataclasses.replace(heads[1], task="multiclass", labels=("0", "shop"))]
    for record in read(annotate_file(embed(), make_request(**asked), heads)):
        keys = ["score_quality", "int_score_quality", "score_topics_0", "score_topics_shop", "label_topics"]
        assert list(record) == ["document_id", *keys, "score_both", "int_score_both"]
        assert record["int_score_quality"] == round(min(5, max(0, record["score_quality"])))
        assert record["score_topics_0"] + record["score_topics_shop"] == pytest.approx(1)
        assert record["label_topics"] == ("shop" if record["score_topics_shop"] > 0.5 else "0")
        assert record["score_both"] == max(record["score_quality"], record["score_topics_0"])


def test_another_ensemble_is_another_request(
    embed: Embed, make_request: Callable[..., AnnotateRequest], heads: list[Head]
) -> None:
    file, asked = embed(), {"ensembles": {"e": Ensemble(heads=("quality", "topics_0"))}}
    annotate_file(file, make_request(**asked), heads)
    other = {"ensembles": {"e": Ensemble(heads=("quality", "topics_1"))}}
    for changes, difference in (
        ({}, r"ensembles: \{'e': \{.*\}\} in the file, None asked for"),
        (other, r"ensembles.e.heads: \['quality', 'topics_0'\] in the file, \['quality', 'topics_1'\] asked for"),
    ):
        with pytest.raises(OutputConflictError, match=f"made by another request: {difference}; use another"):
            finished_annotation(file, make_request(**changes))
    assert finished_annotation(file, make_request(**asked)) is not None


def test_a_score_has_the_digits_of_a_float32(embed: Embed, annotate: Annotate, tmp_path: Path) -> None:
    annotate(embed())
    for line in (tmp_path / "annotated/x.jsonl").read_text().splitlines():
        digits = line.partition('"score_quality":')[2].partition(",")[0]
        assert len(digits.strip("-0.").replace(".", "")) <= 9


def test_the_report_tells_where_the_output_lies(
    embed: Embed, make_request: Callable[..., AnnotateRequest], heads: list[Head], tmp_path: Path
) -> None:
    report = annotate_file(embed(name="a/b/x.jsonl"), make_request(), heads)
    assert (report.embeddings, report.status, report.documents) == ("a/b/x.h5", "annotated", 3)
    assert report.output == str(tmp_path / "annotated/a/b/x.jsonl")
    assert written(tmp_path) == [".provenance/a/b/x.jsonl.json", "a/b/x.jsonl"]


def test_output_keys_are_taken_from_the_embedding_file(embed: Embed, annotate: Annotate, tmp_path: Path) -> None:
    file = embed(schema=DocumentSchema(("text",), index_keys=("text", "meta.lang"), label_keys="label"))
    shutil.rmtree(tmp_path / "corpus")  # not needed
    keys = ("text", "document_id", "labels", "meta.lang", "source_line")
    records = annotate(file, output_keys=keys)
    assert [tuple(record) for record in records] == [(*keys, *COLUMNS)] * 3
    assert [tuple(record.values()) for record in metadata(records)] == [
        ("one", "a", 3.0, "de", 1),
        ("two two two", "b", 4.0, "en", 3),
        ("größer", "c", 5.0, "fr", 5),
    ]


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
@pytest.mark.parametrize("batch_size", [1, 4096])
def test_other_output_keys_are_joined_from_the_source(
    embed: Embed, annotate: Annotate, suffix: str, batch_size: int
) -> None:
    file = embed(name=f"x.jsonl{suffix}")
    records = annotate(file, output_keys=("n", "document_id", "meta.lang", "text"), batch_size=batch_size)
    assert [list(record.items()) for record in metadata(records)] == [
        [("n", 1), ("document_id", "a"), ("meta.lang", "de"), ("text", "one")],
        [("n", 2.5), ("document_id", "b"), ("meta.lang", "en"), ("text", "two two two")],
        [("n", None), ("document_id", "c"), ("meta.lang", "fr"), ("text", "größer")],
    ]


def test_a_line_too_long_to_be_embedded_is_passed_over(
    write_lines: WriteLines, tiny_files: ModelFiles, tiny_encoder: Encoder, annotate: Annotate, tmp_path: Path
) -> None:
    write_lines("corpus/x.jsonl", [DOCUMENTS[0], {"id": "long", "text": "x" * 2000}, DOCUMENTS[1]])
    (source,) = find_files(tmp_path / "corpus", "*", SOURCE_SUFFIXES)
    request = EmbedRequest(tiny_files, tiny_encoder.settings, TEXT, max_line_bytes=1024)
    embed_file(source, tmp_path / "embeddings/x.h5", tmp_path / "rejected", request, tiny_encoder)
    records = annotate(find_embeddings(tmp_path / "embeddings"), output_keys=("text",))
    assert metadata(records) == [{"text": "one"}, {"text": "two two two"}]


def test_a_star_is_the_whole_document(embed: Embed, annotate: Annotate) -> None:
    file = embed()
    assert metadata(annotate(file, output_keys=("*",))) == DOCUMENTS
    both = metadata(annotate(file, output_keys=("document_id", "*")))
    assert both == [{"document_id": document["id"], **document} for document in DOCUMENTS]


def test_a_star_that_holds_a_score_already_is_refused(embed: Embed, annotate: Annotate, tmp_path: Path) -> None:
    file = embed([{"text": "one", "score_quality": 0.5}])
    message = r"x\.h5: the source documents already have a key \"score_quality\"; set another params\.score_prefix"
    with pytest.raises(AnnotationError, match=message):
        annotate(file, output_keys=("*",))
    assert written(tmp_path) == []
    (record,) = annotate(file, output_keys=("*",), score_prefix="new_")
    assert list(record) == ["text", "score_quality", "new_quality", "new_topics_0", "new_topics_1"]


def test_doc_id_stands_for_the_document_id(embed: Embed, annotate: Annotate) -> None:
    assert metadata(annotate(embed(), output_keys=("doc_id", "text")))[0] == {"doc_id": "a", "text": "one"}


def test_doc_id_is_the_documents_own_key_where_the_ids_come_from_another(embed: Embed, annotate: Annotate) -> None:
    file = embed([{"doc_id": "mine", "key": "k", "text": "one"}], DocumentSchema(("text",), id_key="key"))
    assert metadata(annotate(file, output_keys=("doc_id", "document_id"))) == [{"doc_id": "mine", "document_id": "k"}]


def test_scores_may_be_listed_among_the_output_keys(embed: Embed, annotate: Annotate) -> None:
    records = annotate(embed(), output_keys=("score_quality", "document_id"))
    assert metadata(records)[0] == {"document_id": "a"}


def test_no_output_keys_leave_the_scores_alone(embed: Embed, annotate: Annotate) -> None:
    assert [list(record) for record in annotate(embed(), output_keys=())] == [COLUMNS] * 3


@pytest.mark.parametrize(("compression", "suffix"), [("gzip", ".gz"), ("zstd", ".zst")])
def test_the_output_may_be_compressed(
    embed: Embed,
    make_request: Callable[..., AnnotateRequest],
    heads: list[Head],
    tmp_path: Path,
    compression: Compression,
    suffix: str,
) -> None:
    file = embed()
    annotate_file(file, make_request(), heads)
    report = annotate_file(file, make_request(compression=compression), heads)
    assert report.output == str(tmp_path / f"annotated/x.jsonl{suffix}")
    decompress = gzip.decompress if compression == "gzip" else zstd.decompress
    assert decompress(Path(report.output).read_bytes()) == (tmp_path / "annotated/x.jsonl").read_bytes()


@pytest.mark.parametrize("batch_size", [1, 4096])
def test_a_key_that_some_documents_lack_is_null_there_and_counted(
    embed: Embed, make_request: Callable[..., AnnotateRequest], heads: list[Head], batch_size: int
) -> None:
    request = make_request(output_keys=("meta.url", "n", "text"), batch_size=batch_size)
    report = annotate_file(embed(), request, heads)
    assert report.missing_values == {"meta.url": 2}
    assert [record["meta.url"] for record in read(report)] == [None, "u", None]


def test_a_key_that_is_nowhere_is_an_error_that_names_what_there_is(
    embed: Embed, annotate: Annotate, tmp_path: Path
) -> None:
    message = (
        r'params\.output_keys: "nowhere" is neither in .*x\.h5 nor in any document of .*corpus/x\.jsonl; there are: '
        r".*document_id.*, id, text, meta, n, label"
    )
    with pytest.raises(AnnotationError, match=message):
        annotate(embed(), output_keys=("document_id", "text", "nowhere"))
    assert written(tmp_path) == []


def test_a_source_that_moved_is_found_in_source_dir(embed: Embed, annotate: Annotate, tmp_path: Path) -> None:
    file = embed(name="a/x.jsonl")
    (tmp_path / "corpus").rename(tmp_path / "moved")
    message = r'"text" is not in .*x\.h5, and the source .*corpus/a/x\.jsonl does not exist; set params\.source_dir to'
    with pytest.raises(SourceError, match=message):
        annotate(file, output_keys=("text",))
    assert written(tmp_path) == []
    assert metadata(annotate(file, output_keys=("text",), source_dir=tmp_path / "moved"))[0] == {"text": "one"}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"one"', b'"two"'),  # the same size: only the digest differs
        (b'"one"', b'"longer"'),
        (b'{"id": "b"', b'x"id": "b"'),  # no longer JSON
        (b"{broken\n", b"{brok\n\n\n"),  # other offsets
        (b"\n\n", b"\nx"),  # another number of lines, the same offsets
    ],
)
def test_a_source_that_changed_is_an_error_and_leaves_nothing(
    embed: Embed, annotate: Annotate, tmp_path: Path, old: bytes, new: bytes
) -> None:
    file = embed()
    content = (tmp_path / "corpus/x.jsonl").read_bytes()
    assert old in content
    (tmp_path / "corpus/x.jsonl").write_bytes(content.replace(old, new))
    message = r"corpus/x\.jsonl changed since .*x\.h5 was made from it; embed it again, or set params\.source_dir"
    with pytest.raises(SourceError, match=message):
        annotate(file, output_keys=("text",))
    assert written(tmp_path) == []


@pytest.mark.parametrize("keys", [("*",), ("deep",)])
def test_a_document_that_is_nested_deeper_than_orjson_writes_is_copied(
    embed: Embed, annotate: Annotate, keys: tuple[str, ...]
) -> None:
    deep = b"[" * 500 + b"]" * 500
    first, second = annotate(embed([{"text": "one"}, b'{"text": "two", "deep": ' + deep + b"}"]), output_keys=keys)
    assert orjson.loads(deep) == second["deep"]
    assert first.get("deep") is None


def test_a_file_of_another_tool_is_annotated_with_what_it_holds(annotate: Annotate, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as f:
        f["train/embeddings"] = np.ones((2, TINY_DIM), np.float16)
        f["train/document_id"] = ["ä", "b"]
        f["train/labels"] = np.array([[1, 2], [3, 4]], np.int64)
    file = find_embeddings(tmp_path)
    assert metadata(annotate(file, output_keys=("doc_id", "labels"))) == [
        {"doc_id": "ä", "labels": [1, 2]},
        {"doc_id": "b", "labels": [3, 4]},
    ]
    message = (
        r'params\.output_keys: "text", "\*" is not in .*x\.h5, and the file does not name its source; it '
        "contains: document_id, embeddings, labels"
    )
    with pytest.raises(AnnotationError, match=message):
        annotate(file, output_keys=("document_id", "text", "*"))


def test_a_file_of_another_tool_without_ids_is_annotated_without_ids(annotate: Annotate, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as f:
        f["train/embeddings"] = np.ones((2, TINY_DIM), np.float32)
    file = find_embeddings(tmp_path)
    assert metadata(annotate(file, output_keys=())) == [{}, {}]
    with pytest.raises(AnnotationError, match=r'"document_id" is not in .*x\.h5, .*; it contains: embeddings'):
        annotate(file)


@pytest.mark.parametrize("batch_size", [2, 4096])
def test_a_score_that_is_not_finite_names_row_and_document_and_leaves_nothing(
    embed: Embed, annotate: Annotate, tmp_path: Path, batch_size: int
) -> None:
    file = embed()
    with h5py.File(file.path, "a") as f:
        f["train/embeddings"][2, 5] = np.nan
    message = (
        r"x\.h5: row 2 \(document c\): head quality gives nan; check the head's weights, the embedding, and model_dtype"
    )
    with pytest.raises(AnnotationError, match=message):
        annotate(file, batch_size=batch_size)
    assert written(tmp_path) == []


def test_a_score_that_is_not_finite_is_named_without_an_id_too(annotate: Annotate, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as f:
        f["train/embeddings"] = np.full((2, TINY_DIM), np.inf)
    with pytest.raises(AnnotationError, match=r"row 0 \(document without an id\): head quality gives -?(inf|nan)"):
        annotate(find_embeddings(tmp_path), output_keys=())


@pytest.mark.parametrize("keys", [("document_id",), ("text",), ("*",), ()])
def test_a_file_without_rows_gives_an_empty_output(
    embed: Embed, make_request: Callable[..., AnnotateRequest], heads: list[Head], keys: tuple[str, ...]
) -> None:
    file, request = embed([b"broken"]), make_request(output_keys=keys)
    report = annotate_file(file, request, heads)
    assert (report.documents, Path(report.output).read_bytes()) == (0, b"")
    assert finished_annotation(file, request) is not None


def test_a_head_that_does_not_fit_is_an_error_and_leaves_nothing(
    embed: Embed, make_request: Callable[..., AnnotateRequest], tmp_path: Path
) -> None:
    torch.save(torch.nn.Linear(TINY_DIM + 1, 1).state_dict(), tmp_path / "wide.pt")
    save_file({"weight": torch.ones(1, TINY_DIM)}, tmp_path / "other.safetensors", {"encoder_weights_sha256": "f" * 64})
    file = embed()
    with pytest.raises(HeadError, match=r"head wide takes embeddings of width 33, but those of .*x\.h5 are 32 wide"):
        annotate_file(file, make_request(), [load_head("wide", tmp_path / "wide.pt")])
    with pytest.raises(
        HeadError, match=r"head other was trained on embeddings of an encoder with weights ffffffffffff, but .*x\.h5"
    ):
        annotate_file(file, make_request(), [load_head("other", tmp_path / "other.safetensors")])
    assert written(tmp_path) == []


def test_a_head_of_another_encoder_scores_where_that_is_asked_for_and_the_output_says_so(
    embed: Embed, make_request: Callable[..., AnnotateRequest], tmp_path: Path
) -> None:
    trained_on = {"model": "org/other", "prompt": "query: ", "pooling": "mean"}
    weights = {"weight": torch.ones(1, TINY_DIM)}
    save_file(weights, tmp_path / "other.safetensors", {"encoder": json.dumps(trained_on)})
    file, head = embed(), load_head("other", tmp_path / "other.safetensors")
    with pytest.raises(
        HeadError, match=r"embeddings of org/other, .* they differ in prompt \('query: ' and ''\)\. Use"
    ):
        annotate_file(file, make_request(), [head])
    request = make_request(allow_mismatched_head=True)
    report = annotate_file(file, request, [head])
    assert report.mismatched_heads == {"other": "prompt ('query: ' and '')"}
    again = finished_annotation(file, request)
    assert again is not None
    assert again.mismatched_heads == report.mismatched_heads
    assert json.loads(request.provenance_file(file).read_text())["mismatched_heads"] == report.mismatched_heads


def test_what_is_assumed_of_a_head_is_recorded_and_refuses_no_earlier_file(
    embed: Embed, make_request: Callable[..., AnnotateRequest], heads: list[Head]
) -> None:
    file, request = embed(), make_request()
    annotate_file(file, request, heads)
    path = request.provenance_file(file)
    made = json.loads(path.read_text())
    assert made["assumed_of_heads"] == {"topics": ["relu between 0 and 2", "nothing after 2"]}
    del made["assumed_of_heads"]  # as by an earlier version
    path.write_text(json.dumps(made))
    assert finished_annotation(file, request) is not None


def test_a_head_of_several_labels_writes_lists(
    embed: Embed, make_request: Callable[..., AnnotateRequest], tmp_path: Path
) -> None:
    facts = {"task": "multilabel", "labels": json.dumps(["news", "spam"])}
    save_file(
        {"weight": torch.zeros(2, TINY_DIM), "bias": torch.tensor([1.0, -1.0])}, tmp_path / "t.safetensors", facts
    )
    file, request = embed(), make_request()
    annotate_file(file, request, [load_head("topics", tmp_path / "t.safetensors")])
    line = json.loads(request.output(file).read_text().splitlines()[0])
    assert line["label_topics"] == ["news"]
    assert line["score_topics_news"] + line["score_topics_spam"] == pytest.approx(1)


def test_a_file_that_is_no_file_of_embeddings_is_an_error(annotate: Annotate, tmp_path: Path) -> None:
    (tmp_path / "x.h5").write_bytes(b"not HDF5")
    with pytest.raises(EmbeddingFileError, match=r"x\.h5 is not an HDF5 file"):
        annotate(find_embeddings(tmp_path))


@pytest.fixture
def finished(
    embed: Embed, make_request: Callable[..., AnnotateRequest], heads: list[Head]
) -> tuple[TaskFile, AnnotateRequest, AnnotateReport]:
    """An annotated file, its request and its report."""
    file, request = embed(), make_request(output_keys=("document_id", "meta.url"))
    return file, request, annotate_file(file, request, heads)


Finished = tuple[TaskFile, AnnotateRequest, AnnotateReport]


def test_nothing_is_finished_before_it_was_annotated(
    embed: Embed, make_request: Callable[..., AnnotateRequest]
) -> None:
    assert finished_annotation(embed(), make_request()) is None


def test_a_finished_file_is_skipped_with_the_same_counts(finished: Finished) -> None:
    file, request, report = finished
    assert report.missing_values == {"meta.url": 2}
    assert finished_annotation(file, request) == dataclasses.replace(report, status="skipped", seconds=0.0)


def test_what_does_not_change_the_content_is_not_asked_for(finished: Finished, tmp_path: Path) -> None:
    file, request, _ = finished
    request = dataclasses.replace(request, batch_size=1, source_dir=tmp_path / "corpus")
    assert finished_annotation(file, request) is not None


def test_another_compression_is_another_file(finished: Finished) -> None:
    file, request, _ = finished
    assert finished_annotation(file, dataclasses.replace(request, compression="gzip")) is None


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        (
            {"head_sha256": {"quality": "0", "topics": "1"}},
            r"heads.quality: \w{12} in the file, '0' asked for; heads.topics: \w{12} in the file, '1' asked for",
        ),
        (
            {"output_keys": ("document_id",)},
            r"output_keys: \['document_id', .*\] in the file, \['document_id'\] asked for",
        ),
        ({"score_prefix": "s_"}, "score_prefix: 'score_' in the file, 's_' asked for"),
        (
            {"model_dtype": "bfloat16", "output_keys": ()},
            r"output_keys: \[.+\] in the file, \[\] asked for; model_dtype: 'float32' in the file, 'bfloat16' asked",
        ),
    ],
)
def test_a_file_of_another_request_is_in_the_way_and_the_difference_is_named(
    finished: Finished, changes: dict[str, Any], difference: str
) -> None:
    file, request, _ = finished
    message = rf"x\.jsonl was made by another request: {difference}.*; use another output_dir, or set .*overwrite"
    with pytest.raises(OutputConflictError, match=message):
        finished_annotation(file, dataclasses.replace(request, **changes))


def test_embeddings_that_were_made_again_from_another_source_are_other_embeddings(
    finished: Finished, embed: Embed
) -> None:
    _, request, _ = finished
    assert finished_annotation(embed(), request) is not None
    with pytest.raises(
        OutputConflictError, match=r"x\.jsonl was made from another version of .*x\.h5; use another output_dir"
    ):
        finished_annotation(embed([*RECORDS, {"id": "d", "text": "four"}]), request)


def test_embeddings_of_another_tool_are_told_by_their_bytes(
    make_request: Callable[..., AnnotateRequest], annotate: Annotate, tmp_path: Path
) -> None:
    for value in (1, 2):
        with h5py.File(tmp_path / "x.h5", "w") as f:
            f["train/embeddings"] = np.full((2, TINY_DIM), value, np.float32)
        file = find_embeddings(tmp_path)
        if value == 1:
            annotate(file, output_keys=())
            assert finished_annotation(file, make_request(output_keys=())) is not None
    with pytest.raises(OutputConflictError, match="was made from another version of"):
        finished_annotation(file, make_request(output_keys=()))


def test_an_output_that_was_edited_is_in_the_way(finished: Finished) -> None:
    file, request, report = finished
    with open(report.output, "ab") as output:
        output.write(b"\n")
    with pytest.raises(
        OutputConflictError, match=r"x\.jsonl was changed since it was annotated; use another output_dir"
    ):
        finished_annotation(file, request)


@pytest.mark.parametrize("content", [None, b"", b'{"request": '])
def test_an_output_that_does_not_say_what_made_it_is_in_the_way(finished: Finished, content: bytes | None) -> None:
    """Files of another tool, such as the predecessor, whose files have the same names."""
    file, request, _ = finished
    provenance = request.provenance_file(file)
    provenance.unlink()
    if content is not None:
        provenance.write_bytes(content)
    with pytest.raises(
        OutputConflictError, match=r"x\.jsonl does not say which heads and embeddings made it; use another output_dir"
    ):
        finished_annotation(file, request)


def test_a_run_that_was_killed_before_its_output_appeared_is_made_again(finished: Finished) -> None:
    file, request, report = finished
    Path(report.output).unlink()
    assert finished_annotation(file, request) is None


def test_an_output_that_was_copied_is_told_by_its_content(finished: Finished) -> None:
    file, request, report = finished
    os.utime(report.output, ns=(0, 0))
    assert finished_annotation(file, request, read_content=False) is None
    assert finished_annotation(file, request) is not None
    content = Path(report.output).read_bytes()
    Path(report.output).write_bytes(content.replace(b"a", b"b", 1))
    with pytest.raises(OutputConflictError, match="was changed since it was annotated"):
        finished_annotation(file, request)


@pytest.mark.parametrize("compression", SUFFIXES)
def test_the_digest_of_an_output_is_computed_while_it_is_written(
    embed: Embed,
    make_request: Callable[..., AnnotateRequest],
    heads: list[Head],
    monkeypatch: pytest.MonkeyPatch,
    compression: Compression,
) -> None:
    file, request = embed(), make_request(compression=compression)
    digest = identity.file_sha256
    monkeypatch.setattr(identity, "file_sha256", lambda path: pytest.fail(f"{path} was read for its digest"))
    report = annotate_file(file, request, heads)
    monkeypatch.setattr(identity, "file_sha256", digest)
    made = json.loads(request.provenance_file(file).read_text())
    assert made["output"] == identity.file_identity(Path(report.output))


def test_two_compressions_stand_side_by_side(finished: Finished, heads: list[Head]) -> None:
    file, request, _ = finished
    zipped = dataclasses.replace(request, compression="gzip")
    annotate_file(file, zipped, heads)
    assert finished_annotation(file, request) is not None
    assert finished_annotation(file, zipped) is not None


def test_stored_numbers_keep_their_precision_and_nan_is_refused(annotate: Annotate, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as f:
        f["train/embeddings"] = np.ones((2, TINY_DIM), np.float32)
        f["train/labels"] = np.array([[3.7, 1], [0.1, 2]], np.float32)
        f["train/count"] = np.array([5, 6], np.int64)
    (first, _) = annotate(find_embeddings(tmp_path), output_keys=("labels", "count"))
    assert (first["labels"], first["count"]) == ([3.7, 1.0], 5)
    with h5py.File(tmp_path / "x.h5", "a") as f:
        f["train/labels"][1, 0] = np.nan
    with pytest.raises(AnnotationError, match="row 1: labels is not finite, which JSON cannot express"):
        annotate(find_embeddings(tmp_path), output_keys=("labels",))


def test_long_documents_are_joined_a_few_at_a_time(
    embed: Embed, make_request: Callable[..., AnnotateRequest], heads: list[Head]
) -> None:
    file = embed([{"id": str(i), "text": "a", "body": "b" * 200_000} for i in range(400)])  # 80 MB
    tracemalloc.start()
    annotate_file(file, make_request(output_keys=("*",)), heads)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 30 << 20
