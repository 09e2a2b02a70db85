import gzip
import json
import os
from collections.abc import Callable
from typing import Any

import h5py
import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mlfilter_core.config.annotation import Ensemble
from mlfilter_core.embedding.annotate_inline import InlineAnnotation, annotate_embedded
from mlfilter_core.encoder.loading import load_encoder
from mlfilter_core.encoder.model_files import ModelFiles
from mlfilter_core.encoder.settings import EncoderSettings
from mlfilter_core.files.identity import file_identity
from mlfilter_core.files.task_files import TaskFile
from mlfilter_core.files.zstd import zstd
from mlfilter_core.verification.annotated_files import (
    NO_COPIES,
    NO_EMBEDDINGS,
    NO_REJECTS,
    NO_SOURCE,
    check_annotations,
    provenance_of,
)
from mlfilter_core.verification.annotated_lines import has_stored_ids
from mlfilter_core.verification.discrepancies import FileCheck, LineCounts
from mlfilter_core.verification.output_kinds import RelatedFiles, VerifyRequest
from tests.conftest import TINY_DIM
from tests.mlfilter_core.verification.conftest import Outputs

FILE = "annotated_data/a/x.jsonl"
NEAR = RelatedFiles(("embeddings/a/x.h5",))
NEAR_REJECTS = RelatedFiles((), ("rejected/a/x.jsonl",), has_unkept=True)
RECORDS: list[Any] = [
    {"id": "a", "text": "one"},
    b"{broken",
    {"id": "b", "text": "two", "more": {"n": 1}},
    b"",
    {"id": "größer", "text": "three"},
]
COUNTS = LineCounts(5, 3, 1, 1)
AGREEMENT = Ensemble(heads=("quality", "topics_0"), combine="agreement", thresholds={"quality": 0, "topics_0": 0})


def check(outputs: Outputs, relative: str = FILE, near: RelatedFiles = NEAR, **changes: Any) -> FileCheck:
    return check_annotations(relative, VerifyRequest(outputs.folder, **changes), near)


@pytest.fixture
def annotated(outputs: Outputs) -> Outputs:
    file, _ = outputs.embed("a/x.jsonl", RECORDS)
    outputs.annotate(file)
    return outputs


@pytest.fixture
def unkept(outputs: Outputs) -> Outputs:
    """An annotated file whose embeddings were removed."""
    outputs.embed_and_annotate("a/x.jsonl", RECORDS)
    return outputs


def test_a_missing_label_is_found(outputs: Outputs) -> None:
    file, _ = outputs.embed("a/x.jsonl", RECORDS)
    outputs.annotate(file, ensembles={"both": AGREEMENT})
    edit(outputs, lambda records: records[1].pop("label_both"))
    assert 'line 2 has no "label_both"; annotate it again' in check(outputs).problems


@pytest.mark.parametrize("read_content", [True, False])
@pytest.mark.parametrize(
    ("suffix", "changes"),
    [
        ("", {}),
        (".gz", {"compression": "gzip"}),
        (".zst", {"compression": "zstd"}),
        ("", {"output_keys": ("document_id", "more.n", "*")}),
        ("", {"output_keys": ("*", "document_id"), "score_prefix": ""}),
        ("", {"output_keys": ()}),
        ("", {"ensembles": {"both": AGREEMENT}, "integer_scales": {"quality": (0, 5)}}),
    ],
)
def test_an_untouched_file_is_right(outputs: Outputs, suffix: str, changes: dict[str, Any], read_content: bool) -> None:
    file, _ = outputs.embed("a/x.jsonl", RECORDS)
    outputs.annotate(file, **changes)
    found = check(outputs, f"{FILE}{suffix}", read_content=read_content)
    assert found == FileCheck(f"{FILE}{suffix}", annotated_lines=3, n_bytes=found.n_bytes)
    assert (found.n_bytes > 0) == read_content


@pytest.mark.parametrize("compression", [None, "gzip", "zstd"])
def test_a_file_without_documents_is_right(outputs: Outputs, compression: Any) -> None:
    file, _ = outputs.embed("a/x.jsonl", [b""])
    outputs.annotate(file, compression=compression)
    assert check(outputs, f"{FILE}{ {None: '', 'gzip': '.gz', 'zstd': '.zst'}[compression] }").problems == ()


@pytest.mark.parametrize("read_content", [True, False])
def test_without_embeddings_the_source_takes_their_place(unkept: Outputs, read_content: bool) -> None:
    found = check(unkept, near=NEAR_REJECTS, read_content=read_content)
    assert (found.problems, found.not_checked) == ((), (NO_EMBEDDINGS,))
    assert (found.counts, found.annotated_lines, found.rejects) == (COUNTS, 3, "rejected/a/x.jsonl")


def test_in_another_folder_than_the_embeddings_it_is_checked_against_the_source(annotated: Outputs) -> None:
    found = check(annotated, near=RelatedFiles())
    assert (found.problems, found.counts) == ((), COUNTS)
    assert found.not_checked == (NO_EMBEDDINGS, NO_REJECTS)


def test_what_only_the_encoder_rejected_is_known_from_provenance(outputs: Outputs, tiny_files: ModelFiles) -> None:
    strict = load_encoder(tiny_files, EncoderSettings(max_length=20, truncate=False), "cpu", 512)
    outputs.embed_and_annotate("a/x.jsonl", [{"text": "x " * n} for n in (5, 50, 6)] + [b"{broken"], encoder=strict)
    for near in (NEAR_REJECTS, RelatedFiles()):
        found = check(outputs, near=near)
        assert (found.problems, found.counts) == ((), LineCounts(4, 2, 2, 0))


def test_embeddings_of_another_tool_are_told_by_their_bytes(outputs: Outputs) -> None:
    path = outputs.folder / "embeddings/a/x.h5"
    path.parent.mkdir(parents=True)
    for value in (1, 2):
        with h5py.File(path, "w") as file:
            file["train/embeddings"] = np.full((2, TINY_DIM), value, np.float32)
        if value == 1:
            outputs.annotate(TaskFile("a/x.h5", "a/x", path.parents[1]), output_keys=())
            assert check(outputs).problems == ()
            assert check(outputs, near=RelatedFiles()).not_checked == (NO_EMBEDDINGS, NO_SOURCE)
    assert check(outputs).problems == ("was made from another version of embeddings/a/x.h5; annotate it again",)


def edit(outputs: Outputs, change: Callable[[list[dict[str, Any]]], Any]) -> None:
    """Changes the records of an annotated file, and the digest in its provenance."""
    path = outputs.folder / FILE
    records = [json.loads(line) for line in path.read_text().splitlines()]
    change(records)
    path.write_bytes(b"".join(orjson.dumps(record) + b"\n" for record in records))
    state(outputs, output=file_identity(path))


def state(outputs: Outputs, **facts: Any) -> None:
    path = outputs.folder / provenance_of(FILE)
    path.write_bytes(orjson.dumps({**json.loads(path.read_bytes()), **facts}))


def swap_ids(records: list[dict[str, Any]]) -> None:
    records[0]["document_id"], records[1]["document_id"] = "b", "a"


def append(outputs: Outputs, line: bytes) -> None:
    path = outputs.folder / FILE
    path.write_bytes(path.read_bytes() + line)
    state(outputs, output=file_identity(path))


def embed_again(outputs: Outputs, **changes: Any) -> None:
    outputs.embed("a/x.jsonl", RECORDS, **changes)


def change_a_digit(outputs: Outputs) -> None:
    path = outputs.folder / FILE
    content = bytearray(path.read_bytes())
    content[content.index(b".") + 1] ^= 1
    path.write_bytes(content)


OF_THE_LINES: list[Any] = [
    (lambda o: edit(o, swap_ids), 'line 1: document_id is "b", row 0 has "a"; annotate it again (1 more like it)'),
    (lambda o: edit(o, lambda r: r.pop(1)), "it states 3 documents, and has 2 lines; annotate it again"),
    (lambda o: edit(o, lambda r: r.append(r[0])), "it states 3 documents, and has 4 lines; annotate it again"),
    (
        lambda o: edit(o, lambda r: r[1].update(score_quality=None)),
        "line 2: score_quality is null, not a finite number",
    ),
    (lambda o: edit(o, lambda r: r[1].update(score_quality="1")), 'line 2: score_quality is "1", not a finite number'),
    (lambda o: edit(o, lambda r: r[1].update(score_topics_1=True)), "line 2: score_topics_1 is true, not a finite"),
    (lambda o: edit(o, lambda r: r[2].pop("score_topics_1")), "line 3 has no score_topics_1; annotate it again"),
    (lambda o: edit(o, lambda r: r[0].pop("score_quality")), "line 1 has no score_quality; annotate it again"),
    (lambda o: edit(o, lambda r: r[1].pop("document_id")), 'line 2 has no "document_id"; annotate it again'),
    (lambda o: append(o, b"{broken\n"), "line 4 is no JSON object; annotate it again"),
    (lambda o: append(o, b"[1]\n"), "line 4 is no JSON object; annotate it again"),
    (change_a_digit, "changed since it was annotated: it has another sha256; annotate it again"),
    (lambda o: (o.folder / FILE).unlink(), "is missing, though"),
    (lambda o: (o.folder / provenance_of(FILE)).unlink(), "has no readable provenance"),
    (lambda o: (o.folder / provenance_of(FILE)).write_bytes(b"{"), "has no readable provenance"),
    (lambda o: state(o, documents=2), "it states 2 documents, and has 3 lines; annotate it again"),
]


@pytest.mark.parametrize(
    ("break_it", "problem"),
    [
        *OF_THE_LINES,
        (lambda o: state(o, documents=2), "it states 2 documents, and its embeddings have 3 rows; annotate it again"),
        (lambda o: embed_again(o, embedding_dtype="float16"), "was made from another version of embeddings/a/x.h5;"),
        (lambda o: o.embed("a/x.jsonl", RECORDS[:-1]), "was made from another version of embeddings/a/x.h5; annotate"),
    ],
)
def test_what_is_broken_is_named(annotated: Outputs, break_it: Callable[[Outputs], Any], problem: str) -> None:
    break_it(annotated)
    problems = check(annotated).problems
    assert any(problem in found for found in problems), problems
    assert not any("Error:" in found for found in problems), problems


@pytest.mark.parametrize(
    ("break_it", "problem"),
    [
        *OF_THE_LINES,
        (lambda o: (o.corpus / "a/x.jsonl").unlink(), "x.jsonl: No such file or directory; give the folder of the"),
        (lambda o: (o.corpus / "a/x.jsonl").write_bytes(b""), "has 0 bytes, and had"),
        (
            lambda o: (o.corpus / "a/x.jsonl").write_bytes((o.corpus / "a/x.jsonl").read_bytes().replace(b"on", b"no")),
            "x.jsonl changed since it was embedded",
        ),
        (
            lambda o: (o.folder / "rejected/a/x.jsonl").write_bytes(b""),
            "line 2 of the source is no document (not_json), and is not among the rejected lines",
        ),
        (
            lambda o: state(o, counts={"lines": 5, "documents": 3, "rejected": 2, "blank": 1}),
            "it states 5 lines, but 3",
        ),
    ],
)
def test_without_embeddings_what_is_broken_is_named(
    unkept: Outputs, break_it: Callable[[Outputs], Any], problem: str
) -> None:
    break_it(unkept)
    problems = check(unkept, near=NEAR_REJECTS).problems
    assert any(problem in found for found in problems), problems


def test_rejects_that_must_be_there_are_missed(unkept: Outputs) -> None:
    found = check(unkept, near=RelatedFiles(has_unkept=True))
    assert found.problems == ("it states 1 rejected lines, which are missing; embed it again",)


@pytest.mark.parametrize(
    ("break_it", "problem"),
    [
        (lambda o: (o.folder / FILE).write_bytes(b""), "changed since it was annotated: it has another size"),
        (lambda o: os.utime(o.folder / FILE, (1, 1)), "was copied or changed since it was annotated; check without"),
        (lambda o: state(o, documents=2), "it states 2 documents, and its embeddings have 3 rows"),
        (lambda o: embed_again(o, embedding_dtype="float16"), "was made from another version of embeddings/a/x.h5"),
        (lambda o: (o.folder / provenance_of(FILE)).unlink(), "has no readable provenance"),
    ],
)
def test_a_quick_check_names_what_the_metadata_tell(
    annotated: Outputs, break_it: Callable[[Outputs], Any], problem: str
) -> None:
    break_it(annotated)
    found = check(annotated, read_content=False)
    assert any(problem in message for message in found.problems), found.problems


def test_a_file_that_was_copied_is_right_once_it_is_read(annotated: Outputs) -> None:
    os.utime(annotated.folder / FILE, (1, 1))
    assert check(annotated).problems == ()


@pytest.mark.parametrize(("suffix", "compress"), [(".gz", gzip.compress), (".zst", zstd.compress)])
def test_a_compressed_file_that_is_cut_short_is_named(
    outputs: Outputs, suffix: str, compress: Callable[[bytes], bytes]
) -> None:
    file, _ = outputs.embed("a/x.jsonl", RECORDS)
    outputs.annotate(file, compression={".gz": "gzip", ".zst": "zstd"}[suffix])
    path = outputs.folder / f"{FILE}{suffix}"
    path.write_bytes(path.read_bytes()[:-9])
    problems = check(outputs, f"{FILE}{suffix}").problems
    assert "changed since it was annotated: it has another size; annotate it again" in problems
    assert any("the compressed stream breaks off; annotate it again" in problem for problem in problems)


def test_of_several_embeddings_of_one_name_those_that_made_it_are_taken(outputs: Outputs) -> None:
    outputs.embed("a/x.jsonl", RECORDS, embedding_dtype="float16")
    second, _ = outputs.embed("a/x.jsonl", RECORDS, embedding_dir="v2", rejected_dir="rejected/v2")
    outputs.annotate(second)
    assert check(outputs, near=RelatedFiles(("embeddings/a/x.h5", "v2/a/x.h5"))).problems == ()


@pytest.mark.parametrize(
    ("keys", "expected"),
    [(["document_id"], True), (["*", "document_id"], True), (["document_id", "*"], False), (["text"], False)],
)
def test_a_document_s_own_id_may_win(keys: list[str], expected: bool) -> None:
    assert has_stored_ids(keys) == expected


def test_an_annotated_file_is_checked_against_its_parquet_source(outputs: Outputs) -> None:
    outputs.corpus.mkdir()
    table = pa.table({"id": ["a", "b", "c"], "text": ["one", None, "two"], "unread": [[1], [2], [3]]})
    pq.write_table(table, outputs.corpus / "x.parquet", row_group_size=2)
    file, report = outputs.embed("x.parquet", None, embedding_dir=".embeddings")
    request = outputs.annotate_request(output_keys=("document_id", "*"))
    annotate_embedded(report, file, InlineAnnotation(request, keep_embeddings=False), outputs.heads)
    near = RelatedFiles((), ("rejected/x.jsonl",), has_unkept=True)
    found = check(outputs, "annotated_data/x.jsonl", near)
    assert (found.problems, found.counts) == ((), LineCounts(3, 2, 1, 0))
    (first, _) = map(json.loads, (outputs.folder / "annotated_data/x.jsonl").read_text().splitlines())
    assert [first[key] for key in ("id", "text", "unread")] == ["a", "one", [1]]


COPIED: list[Any] = [
    b'{"id": "a", "text": "one", "n": 1.0, "same": 1, "same": 2, "big": 123456789012345678901, "m": {"q": 0.10}}',
    b'{"m": {"q": 1e5, "q": 1.50} , "text": "caf\\u00e9", "n": -0, "id": "b"}\r',
    b'{"text": "none of the others"}',
]


def as_lines(outputs: Outputs, change: Callable[[bytes], bytes] = bytes) -> list[bytes]:
    """Returns the lines of the annotated file, after a change that its provenance tells."""
    path = outputs.folder / FILE
    path.write_bytes(change(path.read_bytes()))
    state(outputs, output=file_identity(path))
    return path.read_bytes().splitlines()


@pytest.mark.parametrize("is_kept", [True, False])
@pytest.mark.parametrize(
    ("keys", "old", "new", "key"),
    [
        (("document_id", "*"), b'"n": 1.0', b'"n": 1.00', "*"),
        (("document_id", "*"), b'"same": 1, ', b"", "*"),
        (("*", "m.q"), b'"m.q":1.50', b'"m.q":1.5', "m.q"),
        (("n", "m"), b'"n":-0', b'"n":0', "n"),
        (("n", "m"), b'{"q": 0.10}', b'{"q": 0.1}', "m"),
        (("big",), b"678901", b"678902", "big"),
        (("text",), "café".encode(), b"cafe", "text"),
        (("n",), b'"n":null', b'"n":0', "n"),
    ],
)
def test_values_that_are_copied_are_those_of_the_source_to_the_digit(
    outputs: Outputs, is_kept: bool, keys: tuple[str, ...], old: bytes, new: bytes, key: str
) -> None:
    file, _ = outputs.embed("a/x.jsonl", COPIED)
    outputs.annotate(file, output_keys=keys)
    if not is_kept:
        file.path.unlink()
    assert check(outputs).problems == ()
    assert old in b"\n".join(as_lines(outputs))
    as_lines(outputs, lambda content: content.replace(old, new, 1))
    (problem,) = check(outputs).problems
    assert f'the value of "{key}" is not that of the source; annotate it again' in problem


@pytest.mark.parametrize("is_kept", [True, False])
def test_a_line_that_is_no_json_leaves_the_others_beside_their_own_records(outputs: Outputs, is_kept: bool) -> None:
    file, _ = outputs.embed("a/x.jsonl", COPIED)
    outputs.annotate(file, output_keys=("n",))
    if not is_kept:
        file.path.unlink()
    first = as_lines(outputs)[0]
    as_lines(outputs, lambda content: content.replace(first, b"{"))
    (problem,) = check(outputs).problems
    assert "line 1 is no JSON object" in problem


def test_copies_of_a_missing_source_are_not_checked(outputs: Outputs) -> None:
    file, _ = outputs.embed("a/x.jsonl", COPIED)
    outputs.annotate(file, output_keys=("n",))
    (outputs.corpus / "a/x.jsonl").unlink()
    assert check(outputs).not_checked == (NO_COPIES,)
