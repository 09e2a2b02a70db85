"""Every output of a deduplication, changed in every way: the verification says what was changed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mlfilter_core.embedding_store.duplicate_file import made_from, write_duplicates
from mlfilter_core.files.identity import file_identity
from mlfilter_core.verification import duplicate_files
from mlfilter_core.verification.duplicate_files import NO_ANNOTATIONS, NO_EMBEDDINGS, NO_GROUPS, check_duplicates
from mlfilter_core.verification.output_kinds import RelatedFiles, VerifyRequest
from mlfilter_core.verification.verify import Verification, verify
from tests.deduplicated_folder import deduplicate
from tests.mlfilter_core.clustering.topics import cluster_job, run_steps, write_topics
from tests.pipeline_folder import filter_corpus, make_pipeline

Columns = dict[str, list[Any]]
Made = dict[str, Any]
X, Y = "duplicates/a/x.parquet", "duplicates/y.parquet"  # near-duplicates; copies of the documents of a/x


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """An output folder of a pipeline with duplicates, which tests copy."""
    folder = tmp_path_factory.mktemp("pipeline")
    out = make_pipeline(folder, tiny_model)
    run_steps(cluster_job(folder))
    deduplicate(out)
    return out


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Saves the start of other processes."""
    serial = "mlfilter_core.verification.verify.in_processes"
    monkeypatch.setattr(serial, lambda function, items, n, died: (function(item) for item, _ in items))


@pytest.fixture
def out(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "out"))


def check(out: Path, read_content: bool = True) -> Verification:
    return verify(VerifyRequest(out, read_content=read_content))


def problems(out: Path, path: str = X, read_content: bool = True) -> str:
    """Returns the problems of a file of duplicates, or of a folder, by the check of all that is in it."""
    if not path.startswith("duplicates/"):
        found = check(out, read_content).wrong
        return " | ".join(problem for each in found if each.path == path for problem in each.problems)
    stem = path.removeprefix("duplicates/").removesuffix(".parquet")
    related = RelatedFiles((f"embeddings/{stem}.h5", f"clusters/{stem}.parquet", f"annotated_data/{stem}.jsonl"))
    return " | ".join(check_duplicates(path, VerifyRequest(out, read_content=read_content), related).problems)


def rewrite(path: Path, change: Callable[[Columns, Made], object]) -> None:
    """Changes the columns of a file of duplicates and what it states."""
    table, made = pq.read_table(path), json.loads(json.dumps(made_from(path)))
    columns = table.to_pydict()
    change(columns, made)
    schema = pa.schema([table.schema.field(name) for name in columns])
    write_duplicates(path, pa.table(columns, schema), made)


def first(columns: Columns, has_cosine: bool = True) -> int:
    """Returns the row of the first duplicate with a cosine, or of the first one without."""
    rows = range(len(columns["cosine"]))
    return next(
        row
        for row in rows
        if columns["duplicate_of"][row] is not None and (columns["cosine"][row] is not None) == has_cosine
    )


def test_filtered_files_are_compared_with_the_deduplicated_lines_that_were_filtered(out: Path) -> None:
    deduplicate(out, annotated_directory=out / "annotated_data", overwrite=True)
    read = {"annotated_directory": out / "deduplicated", "embeddings_directory": None}
    filter_corpus(out, **read, keep={"scores": "good"}, overwrite=True)
    found = check(out)
    assert (found.wrong, found.not_checked) == ([], {})
    path = out / "deduplicated/a/x.jsonl"
    path.write_text(path.read_text() + "{}\n")
    assert "another version of annotated_data/a/x.jsonl or deduplicated/a/x.jsonl" in problems(
        out, "filtered/a/x.jsonl"
    )


@pytest.mark.parametrize("read_content", [True, False])
def test_an_untouched_folder_is_right(out: Path, read_content: bool) -> None:
    found = check(out, read_content)
    assert (found.wrong, found.not_checked) == ([], {})
    heads_and_scores = "2 heads, 3 annotated files"
    expected = f"3 files of clusters, {heads_and_scores}, 3 files of duplicates, 3 filtered files: all right"
    assert expected in found.summary()


@pytest.mark.parametrize(
    "params",
    [
        {"threshold": "exact", "clusters_directory": None},
        {"compression": "gzip"},
        {"compression": "zstd", "annotated": True},
        {"annotated": True, "prefer": "best", "score": "good"},
        {"write_documents": False, "prefer": "first"},
    ],
    ids=str,
)
def test_every_form_of_a_deduplication_is_proved(out: Path, params: dict[str, Any]) -> None:
    shutil.rmtree(out / "deduplicated")
    shutil.rmtree(out / "duplicates")
    (out / "duplicates.json").unlink()
    annotated = out / "annotated_data" if params.pop("annotated", False) else None
    deduplicate(out, annotated_directory=annotated, **params)
    found = check(out)
    assert (found.wrong, found.not_checked) == ([], {})


def test_pairs_of_several_files_are_proved_some_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Embeddings of another tool, some of documents with several of them."""
    out = tmp_path / "out"
    for i in range(4):
        write_topics(out / f"embeddings/{i}.h5", np.arange(60) % 3, i)
    for i in (1, 2):
        with h5py.File(out / f"embeddings/{i}.h5", "a") as file:
            for name in ("document_id", "n_tokens", "index/text"):
                values = file[f"train/{name}"][:40]
                del file[f"train/{name}"]
                file[f"train/{name}"] = values
            file["train/first_chunk"] = np.append(np.arange(20), np.arange(20, 60, 2))
    run_steps(cluster_job(tmp_path))
    deduplicate(out, threshold=0.95, write_documents=False)
    monkeypatch.setattr(duplicate_files, "BLOCK_BYTES", 7 * 4 * 16)  # 7 rows
    path, pairs = "duplicates/3.parquet", []
    assert [problems(out, f"duplicates/{i}.parquet") for i in range(4)] == [""] * 4

    def change(columns: Columns, made: Made) -> None:
        for row, cosine in enumerate(columns["cosine"]):
            if cosine is not None:
                pairs.append(columns["near_file"][row])
                columns["cosine"][row] = cosine + 2e-5

    rewrite(out / path, change)
    assert len(set(pairs)) > 2
    said = problems(out, path)
    assert "have the cosine 0.9" in said
    assert f"({len(pairs) - 1} more like it)" in said


# What the file states.


def stating(**values: Any) -> Callable[[Columns, Made], None]:
    return lambda _, made: made.update(values)


def in_embeddings(_: Columns, made: Made) -> None:
    made["embeddings"]["rows"] = 29


def in_request(_: Columns, made: Made) -> None:
    made["request"]["documents"] = None


def other_digest(_: Columns, made: Made) -> None:
    made["output"]["sha256"] = "0" * 64


# What it says of documents.


def of_others(columns: Columns, _: Made) -> None:
    columns["document_id"].reverse()


def without_ids(columns: Columns, _: Made) -> None:
    del columns["document_id"]


def setting(name: str, value: Any, has_cosine: bool = True) -> Callable[[Columns, Made], None]:
    """Sets a value of a duplicate; a function takes the columns and the row."""

    def change(columns: Columns, _: Made) -> None:
        row = first(columns, has_cosine)
        columns[name][row] = value(columns, row) if callable(value) else value

    return change


def another_duplicate(columns: Columns, row: int) -> int:
    return next(i for i, kept in enumerate(columns["duplicate_of"]) if kept is not None and i != row)


def of_another_group(columns: Columns, row: int) -> int:
    return next(i for i in range(30) if columns["duplicate_of"][i] is None and i != columns["duplicate_of_row"][row])


def itself(_: Columns, row: int) -> int:
    return row


def more(columns: Columns, row: int) -> float:
    return float(columns["cosine"][row]) + 2e-5


def not_a_duplicate(columns: Columns, made: Made) -> None:
    row = first(columns)
    for name in columns.keys() - {"document_id"}:
        columns[name][row] = None
    made["kept"] += 1


def a_value_of_a_kept_one(columns: Columns, _: Made) -> None:
    columns["cosine"][columns["duplicate_of"].index(None)] = 0.99


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (stating(documents=31), "it has 30 rows and states 31; deduplicate again"),
        (stating(kept=31), "it states 31 kept of 30 documents; deduplicate again"),
        (stating(kept=16), "it states 16 kept documents, and marks 17; deduplicate again"),
        (stating(tokens=1000), "it states 1,000 tokens, and there are "),
        (stating(kept_tokens=1), "it states 1 kept_tokens, and there are "),
        (stating(output=None), "its record of written documents contradicts its request; deduplicate again"),
        (in_request, "deduplicated/a/x.jsonl is of another run; deduplicate again, or remove what is not wanted"),
        (other_digest, "deduplicated/a/x.jsonl changed since it was written: another sha256; deduplicate again"),
        (in_embeddings, "was made from another version of "),
        (of_others, "rows 0 to 29 have the ids of other documents; deduplicate again"),
        (without_ids, "has no document_id, unlike "),
        (setting("duplicate_of", "a/x-29"), 'duplicate_of is "a/x-29", and row '),
        (setting("duplicate_of_row", another_duplicate), " of a/x.h5, which is not kept; deduplicate again"),
        (setting("duplicate_of_row", 30), " points to a row of a/x.h5 that does not exist; deduplicate again"),
        (setting("duplicate_of_row", -1), " points to a row of a/x.h5 that does not exist; deduplicate again"),
        (setting("duplicate_of_file", "b.h5"), ' points to "b.h5", of which there is no file of duplicates; '),
        (setting("near_file", "../out/embeddings/a/x.h5"), ' points to "../out/embeddings/a/x.h5", of which there is'),
        (setting("near_row", of_another_group), " of a/x.h5, which is itself or of another group; deduplicate again"),
        (setting("near_row", itself), " of a/x.h5, which is itself or of another group; deduplicate again"),
        (setting("cosine", more), " of a/x.h5 have the cosine 0.9"),
        (setting("cosine", 0.5), " has the cosine 0.5, which does not reach the threshold 0.9; deduplicate again"),
        (setting("cosine", float("nan")), " has the cosine nan, which does not reach the threshold 0.9; "),
        (setting("cosine", None), " has no cosine, and another text_hash than row "),
        (setting("near_row", None), "rows 0 to 29 have only some of duplicate_of, duplicate_of_file, "),
        (a_value_of_a_kept_one, "or values of a kept one; deduplicate again"),
        (not_a_duplicate, "has other duplicates than duplicates.arrow has of it; deduplicate again"),
        (setting("near_row", another_duplicate), "rows 0 to 29 have other duplicates than duplicates.arrow has of"),
    ],
)
def test_a_changed_file_is_found(out: Path, change: Callable[[Columns, Made], None], message: str) -> None:
    rewrite(out / X, change)
    assert message in problems(out)


def test_a_text_that_is_no_copy_is_found(out: Path) -> None:
    with h5py.File(out / "embeddings/a/x.h5", "a") as file:
        file["train/text_hash"][:] += 1
    said = problems(out, Y)
    assert (
        "row 0 has no cosine, and another text_hash than row 0 of a/x.h5; deduplicate again (29 more like it)" in said
    )
    with h5py.File(out / "embeddings/a/x.h5", "a") as file:
        del file["train/text_hash"]
    assert f"row 0 has no cosine, and {out / 'embeddings/a/x.h5'} no text_hash; deduplicate again" in problems(out, Y)


def test_other_embeddings_of_the_near_document_are_found(out: Path) -> None:
    with h5py.File(out / "embeddings/a/x.h5", "a") as file:
        file["train/embeddings"][:] = file["train/embeddings"][:][::-1]
    assert " have the cosine " in problems(out)
    (out / "embeddings/a/x.h5").unlink()
    assert f"row 0 is connected by a row of {out / 'embeddings/a/x.h5'}, which is missing" in problems(out, Y)


# Kept documents.


def removed(lines: list[bytes]) -> list[bytes]:
    return lines[:1] + lines[2:]


def repeated(lines: list[bytes]) -> list[bytes]:
    return [*lines, lines[0]]


def swapped(lines: list[bytes]) -> list[bytes]:
    return [lines[1], lines[0], *lines[2:]]


def of_another_text(lines: list[bytes]) -> list[bytes]:
    return [lines[0].replace(b" b", b" c"), *lines[1:]]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (removed, "deduplicated/a/x.jsonl has 16 documents, and 17 are kept; deduplicate again"),
        (repeated, "deduplicated/a/x.jsonl has 18 documents, and 17 are kept; deduplicate again"),
        (swapped, "deduplicated/a/x.jsonl, line 1 is not line 1 of "),
        (of_another_text, "deduplicated/a/x.jsonl, line 1 is not line 1 of "),
    ],
)
def test_documents_that_were_changed_with_their_digest_are_found(
    out: Path, edit: Callable[[list[bytes]], list[bytes]], message: str
) -> None:
    path = out / "deduplicated/a/x.jsonl"
    before = path.read_bytes()
    path.write_bytes(b"".join(edit(before.splitlines(keepends=True))))
    assert path.read_bytes() != before
    assert "deduplicated/a/x.jsonl" in problems(out, read_content=False)
    rewrite(out / X, lambda _, made: made.update(output=file_identity(path)))
    assert message in problems(out)


def test_an_annotated_file_of_other_lines_is_found(out: Path) -> None:
    deduplicate(out, annotated_directory=out / "annotated_data", overwrite=True)
    assert problems(out) == ""
    path = out / "annotated_data/a/x.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"text"', b'"Text"').replace(b"score", b"Score"))
    assert f"deduplicated/a/x.jsonl, line 1 is not line 1 of {path}; deduplicate again (16 more like it)" in problems(
        out
    )
    path.write_bytes(path.read_bytes().split(b"\n", 1)[1])
    assert f"{path} has 29 lines for 30 documents" in problems(out)


def test_missing_and_stale_documents_are_found(out: Path) -> None:
    path = out / "deduplicated/a/x.jsonl"
    path.rename(path.with_suffix(".jsonl.gz"))
    said = problems(out, read_content=False)
    assert "deduplicated/a/x.jsonl is missing, though duplicates/a/x.parquet exists; deduplicate again" in said
    assert "deduplicated/a/x.jsonl.gz is of another run; deduplicate again, or remove what is not wanted" in said
    (out / X).unlink()
    assert "No such file" in problems(out)


# The corpus.


def test_duplicates_of_another_corpus_are_found(out: Path) -> None:
    other = out.with_name("other")
    deduplicate(out, threshold="exact", output_dir=other)
    shutil.copy(other / "duplicates.arrow", out)
    assert "was made from other duplicates than those of duplicates.arrow; deduplicate again" in problems(out)
    assert "duplicates.json has another " in problems(out, "duplicates")
    shutil.copy(other / "duplicates/a/x.parquet", out / X)
    assert "settings differ: groups_sha256 is " in problems(out, "duplicates")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "duplicates.json cannot be read ("),
        (b"[]", "duplicates.json cannot be read ("),
        (None, "duplicates.json cannot be read ("),
        (b"{}", "duplicates.json has another corpus than duplicates.arrow; deduplicate again"),
    ],
)
def test_a_broken_summary_is_found(out: Path, content: bytes | None, message: str) -> None:
    (out / "duplicates.json").unlink()
    if content is not None:
        (out / "duplicates.json").write_bytes(content)
    assert message in problems(out, "duplicates", read_content=False)


def test_broken_duplicates_of_the_corpus_are_found_once(out: Path) -> None:
    path = out / "duplicates.arrow"
    path.write_bytes(path.read_bytes()[:1000])
    (wrong,) = check(out).wrong
    (problem,) = wrong.problems
    assert wrong.path == "duplicates" and "is not a file of duplicates" in problem


def test_a_missing_file_is_found(out: Path) -> None:
    (out / Y).unlink()
    (out / "deduplicated/y.jsonl").unlink()
    assert "1 of 3 files of embeddings have no files of duplicates: y" in problems(out, "embeddings", False)
    said = problems(out, "duplicates", read_content=False)
    assert "its files have 60 documents and 43 duplicates, and duplicates.arrow 90 and 73; deduplicate again" in said


def test_a_broken_file_is_found(out: Path) -> None:
    path = out / X
    path.write_bytes(path.read_bytes()[:-100])
    assert "not a file of duplicates (" in problems(out)
    assert "not a file of duplicates (" in problems(out, Y)


def test_duplicates_alone_are_checked_as_far_as_possible(out: Path) -> None:
    """For example in a folder that was copied to where the corpus is used."""
    deduplicate(out, annotated_directory=out / "annotated_data", overwrite=True)
    copy = out.with_name("copy")
    for name in ("duplicates", "deduplicated"):
        shutil.copytree(out / name, copy / name)
    found = check(copy)
    assert (found.wrong, found.not_checked) == ([], {NO_EMBEDDINGS: 3, NO_ANNOTATIONS: 3, NO_GROUPS: 3})
    rewrite(copy / X, setting("duplicate_of_row", another_duplicate))
    assert "which is not kept" in problems(copy)
