import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.dataset
import pyarrow.parquet
import pytest

from mlfilter_core.config.filtering import FilterParameters
from mlfilter_core.corpus.lines import Line
from mlfilter_core.errors import AnnotationError, OutputConflictError
from mlfilter_core.files import identity
from mlfilter_core.files.zstd import zstd
from mlfilter_core.filtering import kept_documents
from mlfilter_core.filtering.annotated_file import lines_of as lines_of_file
from mlfilter_core.filtering.filter_file import FilterReport, filter_file, finished_filter
from tests.conftest import WriteLines
from tests.mlfilter_core.filtering.conftest import Filter, lines_of, surveyed


def filtered(params: FilterParameters) -> list[FilterReport]:
    files, request = surveyed(params)
    return [filter_file(file, request) for file in files]


def test_whole_source_documents_are_written_with_their_scores(parameters: Filter, annotated: Path) -> None:
    params = parameters()
    reports = filtered(params)
    scored = lines_of(params.annotated_directory, "a/x.jsonl") + lines_of(params.annotated_directory, "y.jsonl")
    limit = sorted(line["score_good"] for line in scored)[35]
    sources = {
        record["id"]: record
        for name in ("a/x.jsonl", "y.jsonl")
        for line in (annotated / "corpus" / name).read_text().splitlines()
        if line != "{broken" and (record := json.loads(line))
    }
    expected = [
        {**sources[line["document_id"]], "score_good": line["score_good"], "score_fun": line["score_fun"]}
        for line in scored
        if line["score_good"] >= limit
    ]
    kept = lines_of(params.filtered_dir, "a/x.jsonl") + lines_of(params.filtered_dir, "y.jsonl")
    assert kept == expected
    assert sum(report.kept for report in reports) == len(kept) >= 15
    assert [(report.annotated, report.documents) for report in reports] == [("a/x.jsonl", 30), ("y.jsonl", 20)]
    assert 0 < sum(report.kept_tokens for report in reports) < sum(report.tokens for report in reports)
    assert not (annotated / "out" / "dropped").exists()


def test_without_embeddings_the_annotated_lines_are_written_as_they_are(parameters: Filter, annotated: Path) -> None:
    limit = sorted(line["score_good"] for line in lines_of(annotated / "out" / "annotated_data", "y.jsonl"))[9]
    keep = {"scores": {"good": {"threshold": limit}}}
    filtered(params := parameters(embeddings_directory=None, keep=keep, write_dropped=True))
    original = (params.annotated_directory / "y.jsonl").read_bytes().splitlines(keepends=True)
    kept = (params.filtered_dir / "y.jsonl").read_bytes().splitlines(keepends=True)
    dropped = (params.dropped_dir / "y.jsonl").read_bytes().splitlines(keepends=True)
    assert kept == [line for line in original if json.loads(line)["score_good"] >= limit]
    assert dropped == [line for line in original if json.loads(line)["score_good"] < limit]
    assert kept and dropped


@pytest.mark.parametrize(
    ("compression", "suffix", "decompress"), [("gzip", ".jsonl.gz", gzip.decompress), ("zstd", ".jsonl.zst", None)]
)
def test_files_can_be_compressed(
    parameters: Filter, compression: str, suffix: str, decompress: Callable[[bytes], bytes] | None
) -> None:
    filtered(params := parameters())
    filtered(compressed := parameters(compression=compression, output_dir=params.output_dir / "other"))
    plain = (params.filtered_dir / "y.jsonl").read_bytes()
    assert (decompress or zstd.decompress)((compressed.filtered_dir / f"y{suffix}").read_bytes()) == plain


def test_parquet_has_the_same_documents(parameters: Filter) -> None:
    filtered(params := parameters())
    filtered(parquet := parameters(output_format="parquet", output_dir=params.output_dir / "other"))
    table = pyarrow.parquet.read_table(parquet.filtered_dir / "y.parquet")
    expected = lines_of(params.filtered_dir, "y.jsonl")
    rows = [{**row, "meta": json.loads(row["meta"])} for row in table.to_pylist()]
    assert rows == expected
    assert {path.name for path in parquet.filtered_dir.iterdir()} == {"y.parquet", "a", ".provenance", ".survey"}


def test_the_report_counts_groups_scores_and_documents_without_one(write_lines: WriteLines, tmp_path: Path) -> None:
    lines = [
        {"q": 1, "r": 9, "n_tokens": 10, "lang": "de"},
        {"q": 5, "r": 9, "n_tokens": 20, "lang": "de"},
        {"q": None, "r": 9, "n_tokens": 40, "lang": "en"},
        {"q": 6, "r": 1, "n_tokens": 80},
    ]
    path = write_lines("x.jsonl", lines)
    params = FilterParameters.model_validate(
        {
            **{"annotated_directory": path.parent, "output_dir": tmp_path / "out", "glob_pattern": "x.jsonl"},
            "keep": {"scores": {"q": {"threshold": 5}, "r": {"threshold": 1}}, "per": "lang"},
        }
    )
    (report,) = filtered(params)
    assert (report.documents, report.kept, report.without_score) == (4, 2, 1)
    assert (report.tokens, report.kept_tokens) == (150, 100)
    assert report.reached == {"q": 2, "r": 4}
    assert report.by_group == {
        "de": {"documents": 2, "kept": 1, "tokens": 30, "kept_tokens": 20},
        "en": {"documents": 1, "kept": 0, "tokens": 40, "kept_tokens": 0},
        "": {"documents": 1, "kept": 1, "tokens": 80, "kept_tokens": 80},
    }
    assert report.score_sums == {
        "de": {"q": (2, 6.0), "r": (2, 18.0)},
        "en": {"q": (0, 0.0), "r": (1, 9.0)},
        "": {"q": (1, 6.0), "r": (1, 1.0)},
    }
    assert FilterReport.remarks_on([report, report]) == [
        *("q: threshold 5", "r: threshold 1"),
        *("q: 4 documents reach it, 50.0 %", "r: 8 documents reach it, 100.0 %"),
        "without the key: kept 2 of 2 documents, 100.0 %, 100.0 % of the tokens",
        "de: kept 2 of 4 documents, 50.0 %, 66.7 % of the tokens",
        "en: kept 0 of 2 documents, 0.0 %, 0.0 % of the tokens",
        "kept 4 of 8 documents, 50.0 %, 66.7 % of the tokens",
    ]


def test_keeping_nothing_or_everything_is_remarked(parameters: Filter) -> None:
    for threshold, word in ((1e6, "nothing"), (-1e6, "everything")):
        params = parameters(keep={"scores": {"good": {"threshold": threshold}}}, overwrite=True)
        remarks = FilterReport.remarks_on(filtered(params))
        assert remarks[-1].startswith(f"{word} is kept; `ml_filter filter --dry-run` shows")
    assert len(lines_of(params.filtered_dir, "y.jsonl")) == 20


def test_a_finished_file_is_found_and_tells_its_report(parameters: Filter) -> None:
    files, request = surveyed(parameters())
    assert finished_filter(files[0], request, read_content=True) is None
    report = filter_file(files[0], request)
    found = finished_filter(files[0], request, read_content=False)
    assert found is not None
    assert {**vars(found), "criteria": tuple(found.criteria)} == {**vars(report), "status": "skipped", "seconds": 0.0}


@pytest.mark.parametrize("form", [{}, {"compression": "zstd"}, {"output_format": "parquet"}], ids=str)
def test_digests_of_outputs_are_computed_while_they_are_written(
    parameters: Filter, monkeypatch: pytest.MonkeyPatch, form: dict[str, str]
) -> None:
    files, request = surveyed(parameters(write_dropped=True, **form))
    digest = identity.file_sha256
    monkeypatch.setattr(identity, "file_sha256", lambda path: pytest.fail(f"{path} was read for its digest"))
    filter_file(files[0], request)
    monkeypatch.setattr(identity, "file_sha256", digest)
    made = json.loads(request.provenance_file(files[0]).read_text())
    assert [made["output"], made["dropped"]] == list(map(identity.file_identity, request.outputs(files[0])))


def test_an_output_of_another_request_or_other_scores_is_in_the_way(parameters: Filter) -> None:
    params = parameters()
    files, request = surveyed(params)
    filter_file(files[0], request)
    _, other = surveyed(parameters(keep={"scores": {"good": {"percentile": 50}}}))
    with pytest.raises(
        OutputConflictError,
        match=r"another request: keep.good.percentile: None in the file, 50.0 asked for; "
        r"cuts.good: '.* and above \(rank \d+\)' in the file, '.*' asked for; use another output_dir, or",
    ):
        finished_filter(files[0], other, read_content=True)
    output = params.filtered_dir / "a" / "x.jsonl"
    kept = output.read_bytes()
    output.write_bytes(kept + b"{}\n")
    with pytest.raises(OutputConflictError, match=r"x.jsonl was changed since it was written"):
        finished_filter(files[0], request, read_content=True)
    output.write_bytes(kept)
    assert finished_filter(files[0], request, read_content=False) is None  # only its content could show a change
    assert finished_filter(files[0], request, read_content=True) is not None
    (params.filtered_dir / ".provenance" / "a" / "x.jsonl.json").unlink()
    with pytest.raises(OutputConflictError, match="does not say which annotated file it was made from"):
        finished_filter(files[0], request, read_content=True)


def test_outputs_of_another_form_are_in_the_way_and_are_replaced(parameters: Filter) -> None:
    params = parameters(write_dropped=True)
    files, request = surveyed(params)
    filter_file(files[1], request)
    dropped = params.dropped_dir / "y.jsonl"
    content = dropped.read_bytes()
    dropped.write_bytes(content + b"{}\n")
    with pytest.raises(OutputConflictError, match=r"was changed since it was written: .*dropped/y.jsonl"):
        finished_filter(files[1], request, read_content=True)
    dropped.unlink()
    assert finished_filter(files[1], request, read_content=True) is None
    filter_file(files[1], request)
    assert dropped.read_bytes() == content
    _, other = surveyed(parameters(output_format="parquet"))
    for path in (params.filtered_dir / "y.jsonl", dropped):
        assert path in other.stale(files[1])
    with pytest.raises(OutputConflictError, match=r"filtered/y.jsonl was made by another request; use another outp"):
        finished_filter(files[1], other, read_content=True)
    filter_file(files[1], other)
    assert {path.name for path in params.filtered_dir.glob("y*")} == {"y.parquet"}
    assert list(params.dropped_dir.glob("y*")) == []


def test_a_new_group_of_another_file_changes_nothing_of_a_finished_one(write_lines: WriteLines, tmp_path: Path) -> None:
    folder = write_lines("corpus/x.jsonl", [{"q": 1, "lang": "de"}, {"q": 5, "lang": "de"}]).parent
    params = FilterParameters.model_validate(
        {
            **{"annotated_directory": folder, "output_dir": tmp_path / "out"},
            "keep": {"scores": {"q": {"percentile": 50}}, "per": "lang"},
        }
    )
    filtered(params)
    write_lines("corpus/y.jsonl", [{"q": 1, "lang": "en"}])
    files, request = surveyed(params)
    found = finished_filter(files[0], request, read_content=True)
    assert found is not None
    assert found.criteria == ("q: percentile 50 of 3 documents, which is de: 5 and above, en: 1 and above",)


def test_other_weights_are_another_request_for_files_whose_shares_they_change(
    write_lines: WriteLines, tmp_path: Path
) -> None:
    lines = [{"q": i, "n_tokens": 10, "cluster": i % 2} for i in range(8)]
    folder = write_lines("corpus/x.jsonl", lines).parent
    write_lines("corpus/y.jsonl", [{"q": 1, "n_tokens": 10, "cluster": -1}, {"q": 2, "n_tokens": 10}])

    def params(**weights: float) -> FilterParameters:
        keep = {"scores": {"q": {"best_tokens": 60}}, "per": "cluster", "weights": weights}
        return FilterParameters.model_validate(
            {"annotated_directory": folder, "output_dir": tmp_path / "out", "keep": keep}
        )

    reports = filtered(params(**{"0": 2, "1": 3, "-1": 1}))
    assert [report.kept_tokens for report in reports] == [50, 10]
    assert [report.by_group["1"]["kept_tokens"] for report in reports[:1]] == [30]
    assert FilterReport.remarks_on(reports)[1] == (
        "q: 1 group without a weight, no tokens for 1 document: without the key (1 document)"
    )
    files, other = surveyed(params(**{"0": 3, "1": 2, "-1": 1}))
    with pytest.raises(
        OutputConflictError,
        match=r"another request: cuts.q.0: .* asked for; shares.q.0: 20 in the file, 30 asked for; shares.q.1: 30 in",
    ):
        finished_filter(files[0], other, read_content=True)
    found = finished_filter(files[1], other, read_content=True)
    assert found is not None and found.by_group == reports[1].by_group
    _, same = surveyed(params(**{"0": 4, "1": 6, "-1": 2}))
    assert finished_filter(files[0], same, read_content=True) is not None


def test_a_file_that_changes_while_it_is_filtered_is_an_error(
    parameters: Filter, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kept_lines in (slice(None), slice(5)):
        params = parameters(embeddings_directory=None)
        files, request = surveyed(params)

        def lines_of_a_file_that_is_replaced(path: Path, kept_lines: slice = kept_lines) -> Iterator[Line]:
            path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[kept_lines]))
            return lines_of_file(path)

        with monkeypatch.context() as patch:
            patch.setattr(kept_documents, "lines_of", lines_of_a_file_that_is_replaced)
            with pytest.raises(AnnotationError, match=r"y.jsonl was changed while it was read; run the job again once"):
                filter_file(files[1], request)
        assert not (params.filtered_dir / "y.jsonl").exists()


def test_parquet_files_have_the_columns_of_their_documents_even_without_rows(
    write_lines: WriteLines, tmp_path: Path
) -> None:
    folder = write_lines("corpus/x.jsonl", [{"q": 1, "id": "a"}, {"q": 2, "id": "b"}]).parent
    write_lines("corpus/y.jsonl", [{"q": 3.5, "id": "c"}])
    params = FilterParameters.model_validate(
        {
            **{"annotated_directory": folder, "output_dir": tmp_path / "out", "output_format": "parquet"},
            **{"keep": {"scores": {"q": {"threshold": 3}}}, "write_dropped": True},
        }
    )
    filtered(params)
    for folder, ids in ((params.filtered_dir, ["c"]), (params.dropped_dir, ["a", "b"])):
        together = pyarrow.dataset.dataset(folder).to_table()
        assert together.column("id").to_pylist() == ids
        assert str(together.schema.field("q").type) == "double"
        assert {path.name for path in folder.glob("*.*")} - {".provenance", ".survey"} == {"x.parquet", "y.parquet"}


def test_documents_that_parquet_cannot_store_are_an_error(write_lines: WriteLines, tmp_path: Path) -> None:
    deep = b'{"q": 5, "deep": ' + b"[" * 300 + b"]" * 300 + b"}"
    path = write_lines("corpus/x.jsonl", [deep])
    params = FilterParameters.model_validate(
        {
            **{"annotated_directory": path.parent, "output_dir": tmp_path / "out", "output_format": "parquet"},
            "keep": {"scores": {"q": {"threshold": 3}}},
        }
    )
    with pytest.raises(AnnotationError, match=r"x.jsonl: a nested value cannot be written as JSON"):
        filtered(params)
    assert [path.name for path in params.filtered_dir.iterdir()] == [".survey"]


@pytest.mark.parametrize("content", [b"{}", b"[]", b"null", b"{"])
def test_provenance_that_says_nothing_is_in_the_way(content: bytes, parameters: Filter) -> None:
    params = parameters()
    files, request = surveyed(params)
    filter_file(files[1], request)
    request.provenance_file(files[1]).write_bytes(content)
    with pytest.raises(OutputConflictError, match="does not say which annotated file it was made from"):
        finished_filter(files[1], request, read_content=True)
