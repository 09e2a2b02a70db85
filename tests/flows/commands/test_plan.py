"""`ml_filter plan` as people type it, and jobs that flows refuse before they start a worker."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.annotate import annotate
from flows.commands.plan import plan_job, planned_workers
from flows.embed import embed
from flows.running import run_files as run_files_module
from mlfilter_core.config.embedding import EmbeddingJob
from mlfilter_core.config.execution import SlurmSettings
from mlfilter_core.errors import ConfigError
from mlfilter_core.plan import encoder_trial
from mlfilter_core.plan.findings import Findings
from tests.flows.commands.processes import ml_filter, ml_filter_here
from tests.flows.conftest import WriteJob, write_embeddings


def on_slurm(job: Path, **settings: Any) -> Path:
    written = yaml.safe_load(job.read_text())
    del written["local_settings"]
    job.write_text(yaml.safe_dump({**written, "running_on_slurm": True, "slurm_settings": settings}))
    return job


def no_workers(*arguments: Any) -> None:
    raise AssertionError("workers were started")


def test_a_plan_is_one_screen_and_leaves_nothing(embed_job: WriteJob, tmp_path: Path) -> None:
    done = ml_filter("plan", "--config_file_path", embed_job())
    assert done.returncode == 0, done.stderr
    titles = [line.split()[0] for line in done.stdout.splitlines() if line and not line[0].isspace()]
    assert {"files", "keys", "documents", "tokens", "rejected", "encoder", "outputs", "speed", "time"} <= set(titles)
    assert "3 found, 0 finished, 3 to do" in done.stdout
    assert "documents   21 " in done.stdout
    assert "slurm_settings:\n" in done.stdout
    assert done.stdout.rstrip().endswith("no problems found")
    assert len(done.stdout.splitlines()) < 40
    assert done.stderr == ""
    assert not (tmp_path / "out").exists()


def test_all_problems_are_listed_and_the_status_is_1(embed_job: WriteJob, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    wrong = {"keys_to_index": ["lang"], "id_key": "uid", "output_dir": str(tmp_path / "file" / "out")}
    done = ml_filter_here("plan", "--config", embed_job(**wrong), "--set", "params.max_length=9999")
    assert (done.exit_code, type(done.exception)) == (1, SystemExit)
    assert "5 problems:\n" in done.stderr, done.stderr
    for part in ("'lang'", "'uid'", "file/out cannot be written to", "max_length is 9999", "would fail with more rej"):
        assert part in done.stderr
    assert "Traceback" not in done.output


def test_json_has_the_facts_and_the_problems(embed_job: WriteJob) -> None:
    done = ml_filter_here("plan", "--config", embed_job(id_key="uid", on_bad_record="fail"), "--json")
    assert done.exit_code == 1
    facts = json.loads(done.stdout)
    assert facts["flow"] == "embed"
    assert facts["files"]["found"] == 3
    assert any("params.id_key: none of 21 sampled documents has 'uid'" in problem for problem in facts["problems"])


def test_a_job_file_that_is_none_is_a_problem(tmp_path: Path, embed_job: WriteJob) -> None:
    plan = plan_job(embed_job(batchsize=3), {})
    assert "params.batchsize: unknown field; did you mean batch_size?" in plan.problems[0]
    assert "does not exist" in plan_job(tmp_path / "absent.yaml", {}).problems[0]


def test_a_slurm_job_is_planned_where_there_is_no_slurm(
    embed_job: WriteJob, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(encoder_trial, "MEASURED_S", 0.2)
    monkeypatch.setenv("PATH", str(tmp_path))
    job = on_slurm(embed_job(), workers=3, partition="gpu", cpus_per_task=8, sbatch_args={"gres": "gpu:2"})
    plan = plan_job(job, {})
    assert plan.problems == []
    assert any("this machine has no sbatch" in warning for warning in plan.warnings)
    assert plan.to_json()["speed"]["workers"] == 6
    advised = yaml.safe_load(plan.recommended)["slurm_settings"]
    assert (advised["partition"], advised["sbatch_args"]) == ("gpu", {"gres": "gpu:2"})
    assert SlurmSettings.model_validate(advised).cpus_per_task == 8


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"workers": 5, "cpus_per_task": 8}, (5, 1, 8, False)),
        ({"workers": 5, "cpus_per_task": 8, "gpus_per_task": 4}, (20, 4, 2, True)),
        ({"tasks": 7, "cpus_per_task": 8, "gpus_per_task": 0}, (7, 1, 8, False)),
    ],
)
def test_workers_are_those_that_the_flow_would_start(
    embed_job: WriteJob, settings: dict[str, Any], expected: tuple[int, int, int, bool]
) -> None:
    job = EmbeddingJob.model_validate(yaml.safe_load(on_slurm(embed_job(), **settings).read_text()))
    workers = planned_workers(job, Findings())
    assert (workers.n, workers.n_per_job, workers.n_cores, workers.has_gpu) == expected


def test_an_annotation_is_planned(annotate_job: WriteJob, tmp_path: Path) -> None:
    write_embeddings(tmp_path / "out" / "embeddings" / "a.h5", 50)
    done = ml_filter_here("plan", "--config", annotate_job())
    assert done.exit_code == 0, done.output
    assert "1 to do: 50 documents" in done.stdout
    assert "document_id, score_linear, score_mlp" in done.stdout


def test_output_is_whole_where_it_is_piped_and_the_terminal_is_dumb(annotate_job: WriteJob, tmp_path: Path) -> None:
    write_embeddings(tmp_path / "out" / "embeddings" / "a.h5", 50)
    line = f"{Path(sys.executable).parent}/ml_filter plan --config {annotate_job()} | cat"
    variables = {**os.environ, "TERM": "dumb", "COLUMNS": "20"}
    done = subprocess.run(["sh", "-c", line], env=variables, capture_output=True, text=True, check=True)
    assert str(tmp_path / "out" / "annotated_data" / "a.jsonl") in done.stdout
    assert "\x1b" not in done.stdout


def test_the_flow_refuses_a_key_that_no_document_has_before_it_starts_a_worker(
    embed_job: WriteJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_files_module, "local_workers", no_workers)
    with pytest.raises(ConfigError, match=r"params.keys_to_index: none of 21 sampled documents has 'txt'.*text \(str"):
        embed(embed_job(text_field=None, keys_to_index=["txt"]))


def test_the_flow_refuses_an_output_key_that_is_nowhere_before_it_starts_a_worker(
    embed_job: WriteJob, annotate_job: WriteJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed(embed_job())
    monkeypatch.setattr(run_files_module, "local_workers", no_workers)
    with pytest.raises(ConfigError, match="'uri' is neither in the files of embeddings nor in any of"):
        annotate(annotate_job(output_keys=["document_id", "uri"]))


def test_a_filter_has_a_dry_run_instead_of_a_plan(tmp_path: Path) -> None:
    params = {"annotated_directory": str(tmp_path), "output_dir": str(tmp_path / "out"), "keep": {"scores": "quality"}}
    (tmp_path / "filter.yaml").write_text(yaml.safe_dump({"params": params}))
    done = ml_filter("plan", "--config", tmp_path / "filter.yaml")
    assert done.returncode == 1
    assert done.stderr == "error: a filter job has no plan; `ml_filter filter --dry-run` shows what it would keep\n"
