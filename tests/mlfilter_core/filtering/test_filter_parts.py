"""Annotated files that are filtered in parts, compared with the same files filtered as a whole."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mlfilter_core.annotating.annotated_format import Compression
from mlfilter_core.config.filtering import FilterJob, FilterParameters
from mlfilter_core.corpus.lines import Line, SourceReader
from mlfilter_core.errors import SourceError
from mlfilter_core.files.publishing import claim_outputs, remove_leftovers
from mlfilter_core.files.task_files import TaskFile
from mlfilter_core.filtering.filter_file import FilterReport, filter_file, finished_filter, report_of
from mlfilter_core.filtering.filter_parts import filter_in_parts, filter_part, part_outputs, parts_of
from mlfilter_core.filtering.filter_request import FilterRequest
from mlfilter_core.filtering.survey import load_survey
from mlfilter_core.filtering.work import FilterWork, filter_workload
from tests.mlfilter_core.filtering.conftest import Filter, lines_of, surveyed

N = 30  # documents of a/x.jsonl


def surveyed_file(params: FilterParameters) -> tuple[TaskFile, FilterRequest]:
    files, request = surveyed(params)
    return files[0], request


def in_parts(file: TaskFile, n: int, request: FilterRequest, order: int = 1) -> FilterReport:
    """Filters a file as a run does; `order` -1 begins with the last part."""
    reports = [filter_part(part, request) for part in parts_of(file, request, n)[::order]]
    assert len(reports) == min(n, N)
    assert sum(report.documents for report in reports) == N
    whole = filter_in_parts(file, request)
    assert sum(report.kept for report in reports) == whole.kept
    return whole.with_parts(reports)


def content(path: Path) -> list[bytes]:
    with SourceReader(path) as reader:
        return [line.content for line in reader.lines(1 << 30) if isinstance(line, Line)]


def facts(file: TaskFile, request: FilterRequest) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(request.provenance_file(file).read_text())
    return {**made, "output": None, "dropped": None}


def comparable(report: FilterReport) -> FilterReport:
    return replace(report, output="", seconds=0.0, started=0.0, worker="")


@pytest.mark.parametrize("has_sources", [True, False])
@pytest.mark.parametrize("compression", [None, "gzip", "zstd"])
@pytest.mark.parametrize(("n", "order"), [(2, 1), (7, -1), (99, 1)])
def test_parts_equal_the_whole(
    parameters: Filter, n: int, order: int, compression: Compression, has_sources: bool
) -> None:
    changes: dict[str, Any] = {"write_dropped": True, "compression": compression}
    changes |= {} if has_sources else {"embeddings_directory": None}
    changes["keep"] = {"scores": {"good": {"percentile": 60}, "fun": {"percentile": 40}}, "per": "language"}
    if has_sources:
        changes["keep"] |= {"weights": {"de": 2, "en": 1}, "at_least": 1}
        changes["keep"]["scores"]["fun"] = {"best_tokens": 50}
    else:
        changes["keep"]["per"] = None
    file, whole = surveyed_file(parameters(**changes))
    folder = whole.output_dir.parent / "divided"
    _, divided = surveyed_file(parameters(**changes, output_dir=folder))
    one, other = filter_file(file, whole), in_parts(file, n, divided, order)
    for expected, found in zip(whole.outputs(file), divided.outputs(file), strict=True):
        assert content(found) == content(expected)
        if compression is None:
            assert found.read_bytes() == expected.read_bytes()
    assert len(whole.outputs(file)) == 2
    assert facts(file, divided) == facts(file, whole)
    assert comparable(other) == comparable(one)
    assert 0 < other.kept < N
    assert finished_filter(file, divided, read_content=True) is not None
    assert not list(folder.rglob("*.parts"))


def test_what_is_not_divided(parameters: Filter) -> None:
    file, request = surveyed_file(parameters())
    assert parts_of(file, request, 1) == []
    assert parts_of(file, request, 4, min_rows=20) == []
    assert len(parts_of(file, request, 4, min_rows=10)) == 3
    assert parts_of(file, replace(request, output_format="parquet"), 4) == []
    request.survey.output(file).unlink()
    assert parts_of(file, request, 4) == []


def test_parts_are_made_again_where_something_differs(parameters: Filter) -> None:
    """Each assertion: which of three parts are made again."""
    params = parameters(write_dropped=True)
    file, request = surveyed_file(params)
    parts = parts_of(file, request, 3)
    states = lambda of: [filter_part(part, of).status for part in parts]  # noqa: E731
    assert states(request) == ["filtered"] * 3
    assert states(request) == ["skipped"] * 3
    kept, dropped, provenance = part_outputs(parts[1], request)
    dropped.write_bytes(dropped.read_bytes()[:-5])
    assert states(request) == ["skipped", "filtered", "skipped"]
    kept.unlink()
    assert states(request) == ["skipped", "filtered", "skipped"]
    provenance.write_text("{broken")
    assert states(request) == ["skipped", "filtered", "skipped"]
    _, other = surveyed_file(parameters(write_dropped=True, keep={"scores": {"good": {"percentile": 20}}}))
    assert states(other) == ["filtered"] * 3


def test_a_source_that_changes_between_parts_is_found(parameters: Filter, annotated: Path) -> None:
    file, request = surveyed_file(parameters())
    first, *others = parts_of(file, request, 3)
    filter_part(first, request)
    source = annotated / "corpus/a/x.jsonl"
    status = source.stat()
    source.write_bytes(source.read_bytes().replace(b"ba", b"bo", 1))
    os.utime(source, ns=(status.st_atime_ns, status.st_mtime_ns))  # not even by its time
    with pytest.raises(SourceError, match=r"changed since .* was made from it"):
        for part in others:
            filter_part(part, request)
    assert not request.outputs(file)[0].exists()


def test_a_source_that_changes_after_the_last_part_is_found(
    parameters: Filter, annotated: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file, request = surveyed_file(parameters())
    filter_part(parts_of(file, request, 3)[-1], request)
    source = annotated / "corpus/a/x.jsonl"
    source.write_bytes(source.read_bytes().replace(b"ba", b"bo", 1))
    with pytest.raises(SourceError, match=r"changed since .* was made from it"):
        filter_in_parts(file, request)
    assert "its parts do not make the whole, or are of several versions of the source" in caplog.text
    assert not list(request.output_dir.rglob("*.parts"))


def test_where_nothing_is_kept_no_source_is_needed(parameters: Filter, annotated: Path) -> None:
    file, request = surveyed_file(parameters(keep={"scores": {"good": {"threshold": 1e30}}}))
    (annotated / "corpus/a/x.jsonl").unlink()
    assert in_parts(file, 3, request).kept == 0


def test_the_last_part_checks_the_source_also_without_a_document_of_its_own(
    parameters: Filter, annotated: Path
) -> None:
    best = max(lines_of(annotated / "out/annotated_data", "a/x.jsonl")[:20], key=lambda line: line["score_good"])
    above = {"good": {"threshold": best["score_good"]}}
    file, request = surveyed_file(parameters(keep={"scores": above}))
    *_, last = parts_of(file, request, N)
    assert report_of(last, request, load_survey(file, request.survey)).kept == 0
    source = annotated / "corpus/a/x.jsonl"
    status = source.stat()
    source.write_bytes(source.read_bytes().replace(b"ba", b"bo", 1))
    os.utime(source, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(SourceError, match=r"changed since .* was made from it"):
        filter_part(last, request)


def test_parts_of_another_compression_are_removed_once_the_file_is_finished(parameters: Filter) -> None:
    file, request = surveyed_file(parameters())
    filter_part(parts_of(file, request, 3)[0], request)
    _, other = surveyed_file(parameters(compression="zstd"))
    filter_file(file, other)
    assert not list(request.output_dir.rglob("*.parts"))


def test_parts_that_another_run_makes_stay(parameters: Filter) -> None:
    file, request = surveyed_file(parameters())
    first, second, _ = parts_of(file, request, 3)
    filter_part(first, request)
    with claim_outputs(*part_outputs(second, request)):
        filter_file(file, request)
        filter_part(second, request)
    assert list(request.output_dir.rglob("*.parts"))


def test_a_division_whose_parts_are_gone_is_filtered_as_a_whole(parameters: Filter) -> None:
    file, request = surveyed_file(parameters())
    report = filter_in_parts(file, request)
    assert (report.documents, len(content(request.outputs(file)[0]))) == (N, report.kept)
    assert report.kept > 0


def test_unfinished_parts_are_not_taken_for_files_without_annotations(
    parameters: Filter, caplog: pytest.LogCaptureFixture
) -> None:
    file, request = surveyed_file(parameters())
    filter_part(parts_of(file, request, 3)[0], request)
    job = FilterJob.model_validate({"params": parameters().model_dump(mode="json", exclude_none=True)})
    filter_workload(job)
    assert "its annotated file is gone" not in caplog.text


def test_parts_of_a_finished_file_are_removed(parameters: Filter) -> None:
    file, request = surveyed_file(parameters())
    filter_part(parts_of(file, request, 3)[0], request)
    assert remove_leftovers(request.output_dir) == 0
    assert list(request.output_dir.rglob("*.parts"))
    filter_file(file, request)
    assert not list(request.output_dir.rglob("*.parts"))


def test_a_job_divides_of_itself_what_takes_longer_to_write_than_to_read(
    parameters: Filter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlfilter_core.filtering.work.MIN_PART_ROWS", 10)
    for changes, n_parts in (({}, 3), ({"embeddings_directory": None}, 0), ({"split": False}, 0)):
        params = parameters(**changes, overwrite=True)
        file, request = surveyed_file(params)
        assert len(FilterWork(params, request).divide(file, 8)) == n_parts
    params = parameters(embeddings_directory=None, split=4)
    file, request = surveyed_file(params)
    assert len(FilterWork(params, request).divide(file, 1)) == 4
