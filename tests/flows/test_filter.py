import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from typer.testing import CliRunner

from flows.annotate import annotate
from flows.commands.app import build_app
from flows.embed import embed
from flows.filter import filter
from flows.pipeline import pipeline
from flows.running.finished import ToDo, finished_later
from flows.running.report import FilesFailedError
from flows.running.start import run_job_file
from mlfilter_core.config.filtering import FilterJob
from mlfilter_core.config.job_files import load_job
from mlfilter_core.errors import ConfigError, OtherSettingsError
from tests.flows.conftest import WriteJob
from tests.flows.dask_workers import last_task_runs

WriteFilterJob = Callable[..., Path]


@pytest.fixture
def filter_job(tmp_path: Path) -> WriteFilterJob:
    """Writes a job file over the scores in out/annotated_data; keyword arguments replace parameters."""

    def write(**params: Any) -> Path:
        params = {
            "annotated_directory": str(tmp_path / "out" / "annotated_data"),
            "embeddings_directory": str(tmp_path / "out" / "embeddings"),
            "output_dir": str(tmp_path / "out"),
            "keep": {"scores": {"mlp": {"percentile": 60}}},
            **params,
        }
        path = tmp_path / "filter.yaml"
        path.write_text(yaml.safe_dump({"params": params, "local_settings": {"workers": 1}}))
        return path

    return write


@pytest.fixture
def scored(embed_job: WriteJob, annotate_job: WriteJob) -> None:
    embed(embed_job())
    annotate(annotate_job())


def records(folder: Path) -> list[dict[str, Any]]:
    paths = sorted(folder.glob("*/*.jsonl"))
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def test_the_best_documents_are_kept_whole_and_a_rerun_does_nothing(
    scored: None, filter_job: WriteFilterJob, tmp_path: Path, client: SyncPrefectClient
) -> None:
    report = filter(filter_job())
    scores = {row["document_id"]: row for row in records(tmp_path / "out" / "annotated_data")}
    limit = sorted(row["score_mlp"] for row in scores.values())[12]  # 13th of 21 scores
    expected = [
        {**record, **{name: scores[record["id"]][name] for name in ("score_linear", "score_mlp")}}
        for record in records(tmp_path / "corpus")
        if scores[record["id"]]["score_mlp"] >= limit
    ]
    assert records(tmp_path / "out" / "filtered") == expected
    assert report.totals()["kept"] == len(expected) == 9
    assert [row.status for row in report.reports] == ["filtered"] * 3
    wanted = ArtifactFilter(key=ArtifactFilterKey(any_=["filter-summary"]))
    (summary,) = client.read_artifacts(artifact_filter=wanted, limit=1, sort="CREATED_DESC")
    assert "mlp: percentile 60 of 21 documents, which is" in str(summary.data)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "filtered").rglob("*.*") if path.is_file()}
    assert [row.status for row in filter(filter_job()).reports] == ["skipped"] * 3
    before = finished_later(load_job(filter_job(), FilterJob))
    assert before is not None
    assert before.totals()["kept"] == 9
    assert {path: path.stat().st_mtime_ns for path in times} == times
    # As after a kill: missing files are made again, with the same content.
    (lost, *_) = (tmp_path / "out" / "filtered").glob("*/*.jsonl")
    content = lost.read_bytes()
    lost.unlink()
    assert sorted(row.status for row in filter(filter_job()).reports) == ["filtered", "skipped", "skipped"]
    assert lost.read_bytes() == content
    unchanged = {path for path, time in times.items() if path.stat().st_mtime_ns == time}
    assert {path.name.removesuffix(".json") for path in times.keys() - unchanged} == {lost.name}


def test_parts_of_a_file_are_tasks_of_their_own_and_make_the_same_output(
    scored: None, filter_job: WriteFilterJob, tmp_path: Path, client: SyncPrefectClient
) -> None:
    filter(filter_job(split=False))
    output = tmp_path / "out/filtered/a/x.jsonl"
    whole = output.read_bytes()
    output.unlink()
    (row,) = [row for row in filter(filter_job(split=3)).reports if row.status == "filtered"]
    assert row.annotated == "a/x.jsonl"
    names = {run.name for run in last_task_runs(client, 4)}
    assert names == {"filter a/x.jsonl", *(f"filter a/x.jsonl ({i} of 3)" for i in (1, 2, 3))}
    assert output.read_bytes() == whole
    assert not list((tmp_path / "out").rglob("*.parts"))


def test_other_limits_are_refused_over_finished_files_unless_overwritten(
    scored: None, filter_job: WriteFilterJob, tmp_path: Path
) -> None:
    filter(filter_job())
    keep = {"scores": {"mlp": {"percentile": 0}}}
    with pytest.raises(OtherSettingsError, match=r"x.jsonl was made by another request: keep.mlp.percentile: "):
        filter(filter_job(keep=keep))
    assert len(records(tmp_path / "out" / "filtered")) == 9
    filter(filter_job(keep=keep, overwrite=True))
    assert len(records(tmp_path / "out" / "filtered")) == 21


def test_other_scores_over_a_folder_that_was_filtered_before_are_surveyed_anew(
    scored: None, filter_job: WriteFilterJob, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_job_file("filter", filter_job())
    keep = {"scores": {"linear": {"percentile": 50}}}
    assert isinstance(finished_later(load_job(filter_job(keep=keep), FilterJob)), ToDo)
    scores = sorted(row["score_linear"] for row in records(tmp_path / "out" / "annotated_data"))
    n_kept = sum(score >= scores[10] for score in scores)
    assert run_job_file("filter", filter_job(keep=keep, overwrite=True)).totals()["kept"] == n_kept
    # A shard with unchanged files does not reuse the limits after another part of the corpus has changed.
    (first, *_) = (tmp_path / "out" / "annotated_data").glob("*/*.jsonl")
    first.touch()
    job = load_job(filter_job(keep=keep), FilterJob)
    assert isinstance(finished_later(job), ToDo)
    left = tmp_path / "out" / "filtered" / "b" / "z.jsonl"
    left.write_text("{}\n")
    assert run_job_file("filter", filter_job(keep=keep)).totals()["kept"] == n_kept
    assert f"{left}: its annotated file is gone; remove it if its documents are not wanted" in caplog.text


def test_folders_within_one_another_are_refused(scored: None, filter_job: WriteFilterJob, tmp_path: Path) -> None:
    for folder in (tmp_path / "out", tmp_path / "out" / "filtered" / "a"):
        folder.mkdir(parents=True, exist_ok=True)
        with pytest.raises(
            ConfigError, match=r"params.annotated_directory: .* lie within each other; give another out"
        ):
            run_job_file("filter", filter_job(annotated_directory=str(folder), overwrite=True))


def test_a_score_that_there_is_not_stops_the_run_before_any_document_is_written(
    scored: None, filter_job: WriteFilterJob, tmp_path: Path
) -> None:
    keep = {"scores": {"mlp": {}, "absent": {"threshold": 1}}}
    with pytest.raises(FilesFailedError, match='there is no score "absent" nor "score_absent"; the lines have: docum'):
        filter(filter_job(keep=keep))
    with pytest.raises(ConfigError, match=r'params.keep.per: no document has a key "lang"'):
        filter(filter_job(keep={"scores": "mlp", "per": "lang"}))
    assert list((tmp_path / "out" / "filtered").glob("*/*.jsonl")) == []


def test_a_dry_run_shows_what_would_be_kept_and_writes_no_document(
    scored: None, filter_job: WriteFilterJob, tmp_path: Path
) -> None:
    arguments = ["--config", str(filter_job()), "--dry-run", "--percentiles", "50,90", "--thresholds", "1e6"]
    done = CliRunner().invoke(build_app(), ["filter", *arguments])
    assert done.exit_code == 0, done.output
    rows = [line.split() for line in done.stdout.splitlines() if line.strip().startswith("mlp")]
    assert [row[1:5] for row in rows] == [
        *(["percentile", "60", "9", "42.9"], ["percentile", "50", "11", "52.4"]),
        *(["percentile", "90", "3", "14.3"], ["threshold", "1e+06", "0", "0.0"]),
    ]
    weights = "per: document_id, weights: {a/x.jsonl-0: 1, gone: 1}"
    mixed = ["--set", f"params.keep={{scores: {{mlp: {{best_tokens: 1000}}}}, {weights}}}", "--percentiles", ""]
    done = CliRunner().invoke(build_app(), ["filter", *arguments[:3], *mixed])
    assert done.exit_code == 0, done.output
    assert re.search(r"mlp +best 1,000 tokens by weights +1 ", done.stdout)
    assert "mlp: 1 group with a weight but no document, 500 tokens short in all: gone (0 of 500)" in done.stdout
    assert "mlp: 20 groups without a weight, no tokens for 20 documents: " in done.stdout
    assert list((tmp_path / "out" / "filtered").glob("*/*.jsonl")) == []


def test_a_filter_ends_the_row_of_pipelines(
    embed_job: WriteJob, annotate_job: WriteJob, filter_job: WriteFilterJob, tmp_path: Path
) -> None:
    reports = pipeline(embed_job(), annotate_job(), filter_config=filter_job())
    assert [report.flow for report in reports] == ["embed", "annotate", "filter"]
    assert len(records(tmp_path / "out" / "filtered")) == 9
    assert run_job_file("filter", filter_job()).totals()["kept"] == 9
