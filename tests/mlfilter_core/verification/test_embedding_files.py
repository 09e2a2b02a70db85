import base64
import json
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mlfilter_core.corpus.documents import DocumentSchema
from mlfilter_core.encoder.loading import load_encoder
from mlfilter_core.encoder.model_files import ModelFiles
from mlfilter_core.encoder.settings import EncoderSettings
from mlfilter_core.verification.discrepancies import FileCheck, LineCounts
from mlfilter_core.verification.embedding_files import check_embeddings, rejects_of
from mlfilter_core.verification.output_kinds import RelatedFiles, VerifyRequest
from tests.conftest import COMPRESS, limit_memory
from tests.mlfilter_core.conftest import flip_a_bit
from tests.mlfilter_core.verification.conftest import Outputs

FILE = "embeddings/a/x.h5"
REJECTS = "rejected/a/x.jsonl"
RECORDS: list[Any] = [
    {"id": "a", "text": "one"},
    b"{broken",
    b" \t",
    {"id": "b", "text": "two", "n": [1]},
    b'{"id": "c", "text": "' + b"x" * 5000 + b'"}',
    b'{"text": "caf\xe9"}',
    {"id": "d", "text": "größer"},
    {"id": "e", "text": ""},
    b'{"id": "d", "text": "twice"}\r',
]
COUNTS = LineCounts(lines=9, documents=4, rejected=4, blank=1)


def check(outputs: Outputs, relative: str = FILE, **changes: Any) -> FileCheck:
    return check_embeddings(relative, VerifyRequest(outputs.folder, **changes), RelatedFiles())


@pytest.fixture
def embedded(outputs: Outputs) -> Outputs:
    outputs.embed("a/x.jsonl", RECORDS)
    return outputs


@pytest.mark.parametrize("read_content", [True, False])
@pytest.mark.parametrize("suffix", COMPRESS)
def test_an_untouched_file_is_right(outputs: Outputs, suffix: str, read_content: bool) -> None:
    outputs.embed(f"a/x.jsonl{suffix}", RECORDS)
    found = check(outputs, read_content=read_content)
    assert found == FileCheck(FILE, (), (), COUNTS, 0, REJECTS, found.n_bytes)
    assert (found.n_bytes > 0) == read_content


@pytest.mark.parametrize(
    ("records", "changes"),
    [
        ([], {}),
        ([b"", b""], {}),
        ([{"text": "one"}] * 50, {"embedding_dtype": "float16", "writer_batch_size": 7}),
        ([{"text": f"text {i}"} for i in range(50)], {"embedding_dtype": "int8", "writer_batch_size": 7}),
        (
            [{"key": i, "text": "one", "a/b": [i], "score": i + 0.1} for i in range(9)] + [{"key": 9, "text": "two"}],
            {"schema": DocumentSchema(("text",), "key", ("text", "a/b"), ("score",))},
        ),
        (
            [{"text": "one", "s": i, "t": -i} for i in range(200)],
            {"schema": DocumentSchema(("text",), None, (), ("s", "t"), "int8")},
        ),
        ([{"text": "one", "scores": {"score": 0.1}}], {"schema": DocumentSchema(("text",), label_keys=None)}),
    ],
)
def test_files_of_every_kind_of_request_are_right(
    outputs: Outputs, records: list[Any], changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlfilter_core.verification.source_account.BATCH_DOCUMENTS", 8)
    outputs.embed("a/x.jsonl", records, **changes)
    assert check(outputs).problems == ()


def test_lines_that_only_the_encoder_rejects_are_accounted_for(outputs: Outputs, tiny_files: ModelFiles) -> None:
    records: list[Any] = [{"id": n, "text": "x " * n} for n in (5, 50, 7, 30)]
    strict = load_encoder(tiny_files, EncoderSettings(max_length=20, truncate=False), "cpu", 512)
    small = limit_memory(load_encoder(tiny_files, EncoderSettings(), "cpu", 160), 25)
    for name, encoder in (("strict", strict), ("small", small)):
        outputs.embed(f"{name}.jsonl", [*records, b"{broken"], encoder=encoder)
        found = check(outputs, f"embeddings/{name}.h5")
        assert (found.problems, found.counts) == ((), LineCounts(5, 2, 3, 0))


def test_each_folder_of_embeddings_has_its_own_rejects(outputs: Outputs) -> None:
    outputs.embed("a/x.jsonl", RECORDS, embedding_dir="v2/b", rejected_dir="rejected/v2/b")
    found = check(outputs, "v2/b/a/x.h5")
    assert (found.problems, found.rejects) == ((), "rejected/v2/b/a/x.jsonl")


@pytest.mark.parametrize(
    ("relative", "source", "expected"),
    [
        ("embeddings/x.h5", "x.jsonl", "rejected/x.jsonl"),
        ("x.h5", "x.jsonl.zst", "rejected/x.jsonl"),
        ("v2/a/x.h5", "a/x.jsonl.gz", "rejected/v2/a/x.jsonl"),
        ("embeddings/b/x.h5", "a/x.jsonl", None),
        ("embeddings/aa/x.h5", "a/x.jsonl", None),
    ],
)
def test_rejects_mirror_the_embeddings(relative: str, source: str, expected: str | None) -> None:
    assert rejects_of(relative, source) == expected


def edited(outputs: Outputs) -> h5py.Group:
    return h5py.File(outputs.folder / FILE, "r+")["train"]


def swap(outputs: Outputs, name: str) -> None:
    dataset = edited(outputs)[name]
    dataset[:] = dataset[:][[1, 0, *range(2, len(dataset))]]
    dataset.file.close()


def put(outputs: Outputs, name: str, row: int, value: Any) -> None:
    dataset = edited(outputs)[name]
    dataset[row] = value
    dataset.file.close()


def state(outputs: Outputs, name: str, **facts: Any) -> None:
    group = edited(outputs)
    group.attrs[name] = json.dumps({**json.loads(group.attrs[name]), **facts})
    group.file.close()


def drop_row(outputs: Outputs) -> None:
    group = edited(outputs)
    group.visititems(lambda _, dataset: dataset.resize(3, axis=0))
    group.file.close()


def drop(outputs: Outputs, name: str) -> None:
    group = edited(outputs)
    del group[name]
    group.file.close()


def normalize(outputs: Outputs, factor: float) -> None:
    dataset = edited(outputs)["embeddings"]
    dataset[:] = dataset[:] / np.linalg.norm(dataset[:], axis=1, keepdims=True)
    dataset[2] *= factor
    dataset.file.close()
    state(outputs, "encoder", is_normalized=True)


def replace(path: Path, old: bytes, new: bytes) -> None:
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, 1))


def replace_source(outputs: Outputs, old: bytes, new: bytes) -> None:
    replace(outputs.corpus / "a/x.jsonl", old, new)


def replace_rejects(outputs: Outputs, old: bytes, new: bytes) -> None:
    replace(outputs.folder / REJECTS, old, new)


def drop_rejected_line(outputs: Outputs, i: int) -> None:
    lines = (outputs.folder / REJECTS).read_bytes().splitlines(keepends=True)
    (outputs.folder / REJECTS).write_bytes(b"".join(lines[:i] + lines[i + 1 :]))


def swap_rejected_lines(outputs: Outputs) -> None:
    first, second, *others = (outputs.folder / REJECTS).read_bytes().splitlines(keepends=True)
    (outputs.folder / REJECTS).write_bytes(b"".join([second, first, *others]))


def cut(outputs: Outputs) -> None:
    path = outputs.folder / FILE
    path.write_bytes(path.read_bytes()[:-1000])


def reject_a_document(outputs: Outputs, reason: str) -> None:
    """Adds a rejected line for the last document, whose row stays."""
    offset = (outputs.corpus / "a/x.jsonl").read_bytes().rindex(b'{"id": "d"')
    line = {"line": 9, "offset": offset, "reason": reason, "detail": "", "raw": '{"id": "d", "text": "twice"}\r'}
    with open(outputs.folder / REJECTS, "ab") as file:
        file.write(json.dumps(line).encode() + b"\n")


BASE64 = base64.b64encode(b'{"id": "c"')[:8]
Break = Callable[[Outputs], Any]


@pytest.mark.parametrize(
    ("break_it", "problem"),
    [
        (lambda o: swap(o, "document_id"), 'row 0: document_id is "b", line 1 of the source gives "a"; embed it'),
        (lambda o: swap(o, "source_line"), "row 0: source_line is 4, line 1 of the source gives 1; embed it again"),
        (lambda o: put(o, "source_offset", 2, 7), "row 2: source_offset is 7, line 7 of the source gives 51"),
        (lambda o: put(o, "embeddings", 1, np.nan), "the embedding of row 1 has length nan; embed it again"),
        (lambda o: normalize(o, 1.1), "the embedding of row 2 has length 1.1"),
        (lambda o: flip_a_bit(o.folder / FILE, "embeddings"), "embeddings in rows 0 to 3 cannot be read"),
        (lambda o: put(o, "n_tokens", 1, 9), " tokens, and n_tokens adds up to"),
        (lambda o: put(o, "n_tokens", 1, 9), "its histogram of tokens differs from n_tokens; embed"),
        (lambda o: state(o, "statistics", document_tokens=[]), "its histogram of tokens differs from"),
        (lambda o: put(o, "n_tokens", 1, 0), "row 1: n_tokens is 0; embed it again"),
        (drop_row, "it states 4 documents, and has 3 rows; embed it again"),
        (drop_row, "4 documents are in the source and not rejected, and there are 3 rows"),
        (lambda o: drop(o, "document_id"), "no dataset document_id"),
        (lambda o: drop(o, "n_tokens"), "no dataset n_tokens"),
        (lambda o: put(o, "text_hash", 1, 9), "row 1: text_hash is 9, line"),
        (lambda o: drop(o, "embeddings"), 'no group "train" with a dataset "embeddings"'),
        (cut, "is not an HDF5 file, or is cut short"),
        (lambda o: (o.folder / FILE).write_bytes(b""), "is not an HDF5 file, or is cut short"),
        (lambda o: state(o, "counts", blank=2), "it states 9 lines, but 4 documents + 4 rejected + 2 blank"),
        (lambda o: state(o, "counts", lines=10, blank=2), "it states 10 lines, and there are 9; embed it again"),
        (lambda o: state(o, "counts", lines=10, blank=2), "it states 2 blank, and there are 1; embed it again"),
        (lambda o: state(o, "counts", documents=5, lines=10), "it states 5 documents, and has 4 rows"),
        (lambda o: state(o, "counts", tokens=1), "it states 1 tokens, and n_tokens adds up to"),
        (lambda o: state(o, "counts", duplicate_ids=0), "it states 0 ids that an earlier document has, and there"),
        (lambda o: state(o, "counts", rejected_by_reason={"not_json": 4}), "it states other reasons than its rejected"),
        (lambda o: state(o, "counts", rejected_by_reason={}), "it states 4 rejected lines, and other reasons for them"),
        (lambda o: state(o, "source", sha256="0"), "x.jsonl changed since it was embedded; embed it again"),
        (lambda o: state(o, "source", path="b/x.jsonl"), "does not lie where the embeddings of b/x.jsonl belong"),
        (lambda o: state(o, "request", embedding_dtype="float16"), "it states the embedding_dtype float16, and has"),
        (lambda o: state(o, "encoder", dim=3), "it states the dim 3, and has 32; embed it again"),
        (lambda o: state(o, "request", id_key="text"), 'row 0: document_id is "a", line 1 of the source gives "one"'),
        (lambda o: edited(o).attrs.pop("source"), "its provenance is incomplete"),
        (lambda o: edited(o).attrs.pop("format_version"), "has no provenance; embed it again"),
        (lambda o: edited(o).attrs.modify("format_version", 2), "format_version 2, but this release reads 1"),
        (lambda o: replace_source(o, b"two", b"owt"), "x.jsonl changed since it was embedded; embed it again"),
        (lambda o: replace_source(o, b'"b"', b'"B"'), 'row 1: document_id is "b", line 4 of the source gives "B"'),
        (lambda o: replace_source(o, b"one", b"longer"), " when it was embedded; embed it again"),
        (lambda o: (o.corpus / "a/x.jsonl").unlink(), "x.jsonl: No such file or directory; give the folder of"),
        (lambda o: (o.folder / REJECTS).unlink(), "it states 4 rejected lines, and rejected/a/x.jsonl is missing"),
        (lambda o: drop_rejected_line(o, 0), "line 2 of the source is no document (not_json), and is not among"),
        (lambda o: drop_rejected_line(o, 1), "line 5 of the source is no document (line_too_long), and is not among"),
        (lambda o: drop_rejected_line(o, 3), "it states 4 rejected, and there are 3; embed it again"),
        (swap_rejected_lines, "the rejected line 2 is blank in the source, repeated or out of order; embed it again"),
        (lambda o: replace_rejects(o, b"{broken", b"{brokeN"), "the rejected line 2 differs from the source's"),
        (lambda o: replace_rejects(o, BASE64, BASE64[::-1]), "the rejected line 5 differs from the source's"),
        (lambda o: replace_rejects(o, BASE64, b"********"), "x.jsonl:2: no line of a file of rejected lines (Only"),
        (lambda o: replace_rejects(o, b'"line":2', b'"line":3'), "the rejected line 3 is blank in the source"),
        (lambda o: replace_rejects(o, b'"offset":27', b'"offset":23'), "the rejected line 2 has offset 23, the"),
        (lambda o: replace_rejects(o, b"not_json", b"not_utf8"), "the rejected line 2 has the reason not_utf8, the"),
        (lambda o: replace_rejects(o, b'{"line":2', b"{broken"), "x.jsonl:1: no line of a file of rejected lines"),
        (lambda o: reject_a_document(o, "not_json"), "the rejected line 9 has the reason not_json, but is a document"),
        (lambda o: reject_a_document(o, "no_tokens"), "3 documents are in the source and not rejected, and there are"),
    ],
)  # fmt: skip
def test_what_is_broken_is_named(embedded: Outputs, break_it: Break, problem: str) -> None:
    break_it(embedded)
    problems = check(embedded).problems
    assert any(problem in found for found in problems), problems
    assert not any("Error:" in found for found in problems), problems


@pytest.mark.parametrize(
    ("break_it", "problem"),
    [
        (cut, "is not an HDF5 file, or is cut short"),
        (drop_row, "it states 4 documents, and has 3 rows; embed it again"),
        (lambda o: state(o, "counts", blank=2), "it states 9 lines, but 4 documents + 4 rejected + 2 blank"),
        (lambda o: (o.folder / REJECTS).unlink(), "it states 4 rejected lines, and rejected/a/x.jsonl is missing"),
        (lambda o: state(o, "counts", rejected=0, lines=5), "it states 0 rejected lines, and rejected/a/x.jsonl is"),
        (lambda o: replace_source(o, b"one", b"longer"), " when it was embedded; embed it again"),
        (lambda o: os.utime(o.corpus / "a/x.jsonl", (1, 1)), "x.jsonl was copied or changed since it was embedded;"),
        (lambda o: edited(o).attrs.pop("source"), "its provenance is incomplete"),
    ],
)  # fmt: skip
def test_a_quick_check_names_what_the_metadata_tell(embedded: Outputs, break_it: Break, problem: str) -> None:
    break_it(embedded)
    found = check(embedded, read_content=False)
    assert any(problem in message for message in found.problems), found.problems
    assert found.n_bytes == 0


def test_of_many_lines_that_differ_the_first_is_shown_and_the_others_are_counted(outputs: Outputs) -> None:
    outputs.embed("a/x.jsonl", [{"id": i, "text": "one"} for i in range(1500)])
    dataset = edited(outputs)["document_id"]
    dataset[3:] = "x" * 100
    dataset.file.close()
    shown = "x" * 60
    assert check(outputs).problems == (
        f'row 3: document_id is "{shown}...", line 4 of the source gives "3"; embed it again (1,496 more like it)',
    )


def test_all_that_is_wrong_is_said(embedded: Outputs) -> None:
    put(embedded, "embeddings", 1, np.inf)
    put(embedded, "document_id", 3, "z")
    replace_rejects(embedded, b"{broken", b"{brokeN")
    problems = check(embedded).problems
    assert [problem.partition(";")[0] for problem in problems] == [
        "the embedding of row 1 has length inf",
        "the rejected line 2 differs from the source's",
        'row 3: document_id is "z", line 9 of the source gives "d"',
    ]


def test_sources_that_moved_are_found(embedded: Outputs, tmp_path: Path) -> None:
    embedded.corpus.rename(tmp_path / "moved")
    assert len(check(embedded).problems) == 1
    assert check(embedded, source_dir=tmp_path / "moved").problems == ()


def test_another_group_is_named(outputs: Outputs) -> None:
    outputs.embed("a/x.jsonl", RECORDS, group="mine")
    assert 'no group "train"' in check(outputs).problems[0]
    assert check(outputs, group="mine").problems == ()


def test_memory_does_not_grow_with_a_line_or_a_file(outputs: Outputs) -> None:
    def peak_bytes(n: int) -> int:
        overlong = b'{"text": "' + b"x" * (n << 20) + b'"}'
        records = [overlong, *({"id": i, "text": "one", "more": "y" * 1000} for i in range(1000 * n))]
        outputs.embed("a/x.jsonl", records)
        tracemalloc.start()
        assert check(outputs).problems == ()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    small = peak_bytes(12)
    assert peak_bytes(36) < 1.2 * small


def test_a_file_made_from_parquet_is_right_and_a_changed_source_is_noticed(outputs: Outputs) -> None:
    texts = ["one", None, "two", " ", "x" * 3000, "three"]
    outputs.corpus.mkdir()
    source = outputs.corpus / "x.parquet"
    pq.write_table(
        pa.table({"id": [f"d{i}" for i in range(6)], "text": texts, "n": range(6)}), source, row_group_size=4
    )
    outputs.embed("x.parquet", None)
    found = check(outputs, "embeddings/x.h5")
    assert (found.problems, found.counts) == ((), LineCounts(6, 3, 3, 0))
    changed = ["one", None, "too", " ", "x" * 3000, "three"]
    pq.write_table(
        pa.table({"id": [f"d{i}" for i in range(6)], "text": changed, "n": range(6)}), source, row_group_size=4
    )
    problems = " ".join(check(outputs, "embeddings/x.h5").problems)
    assert "changed since it was embedded" in problems or "when it was embedded" in problems
