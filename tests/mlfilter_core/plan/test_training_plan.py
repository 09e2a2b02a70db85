import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlfilter_core.config.embedding import EmbeddingJob
from mlfilter_core.config.training import TrainingJob
from mlfilter_core.embedding.work import embed_work
from mlfilter_core.files.task_files import TaskFile
from mlfilter_core.plan.findings import Findings
from mlfilter_core.plan.plan import Plan, PlannedWorkers
from mlfilter_core.plan.training_plan import plan_training
from mlfilter_core.training.work import training_workload
from tests.conftest import WriteLines

WORKERS = PlannedWorkers(1, 1, 2, False, False, "1 worker on this machine")

PlanJob = Callable[..., Plan]


@pytest.fixture
def plan(tmp_path: Path, write_lines: WriteLines, tiny_model: Path) -> PlanJob:
    """Plans heads over 60 documents with a label of 0 to 3."""
    own = [{"id": f"{n}", "text": f"word {'tea ' * (n % 17)} {n}", "score": n % 4} for n in range(60)]
    write_lines("in/a.jsonl", own)
    job = {"input_dir": tmp_path / "in", "output_dir": tmp_path / "out", "embedding_model": str(tiny_model)}
    params = {**job, "text_field": "text", "save_labels": True, "label_key": "score", "max_batch_tokens": 512}
    embed_work(EmbeddingJob(params=params).params).run(TaskFile("a.jsonl", "a", tmp_path / "in"))

    def planned(heads: Any, **params: Any) -> Plan:
        return plan_training(job_over(tmp_path, heads, **params), WORKERS, 0, Findings())

    return planned


def job_over(folder: Path, heads: Any, **params: Any) -> TrainingJob:
    written = {"embeddings_directory": folder / "out/embeddings", "output_dir": folder / "out", "heads": heads}
    return TrainingJob.model_validate({"params": {**written, **params}})


def test_labels_are_counted_as_the_training_counts_them(plan: PlanJob, tmp_path: Path) -> None:
    heads = {"quality": {"hidden_dims": [], "max_epochs": 1}}
    made = plan(heads).to_json()
    assert made["problems"] == []
    facts = made["heads"]["quality"]
    assert facts["targets"][0]["counts"] == {"0": 15, "1": 15, "2": 15, "3": 15}
    assert not (tmp_path / "out" / "heads").exists()
    workload = training_workload(job_over(tmp_path, heads, device="cpu"))
    report = workload.work.run(workload.files[0])
    assert (facts["trained_on"], facts["held_out"]) == (report.trained_on, report.held_out)
    assert plan(heads, device="cpu").to_json()["files"]["finished"] == 1


def test_labels_of_a_file_are_joined_and_those_without_a_document_counted(
    plan: PlanJob, write_lines: WriteLines
) -> None:
    labels = write_lines("labels.jsonl", [*({"id": f"{n}", "score": n % 3} for n in range(30, 70)), b"{"])
    made = plan({"joined": {"labels_path": str(labels)}})
    left_out = made.to_json()["heads"]["joined"]["left_out"]
    assert left_out == {"without_label": 30, "label_without_document": 10}
    assert any("10 labels are of no document here" in warning for warning in made.warnings)
    assert any("lines of labels_path without a valid label: 1 not_json" in warning for warning in made.warnings)


def test_all_heads_are_looked_at_and_each_problem_names_its_head(plan: PlanJob, tmp_path: Path) -> None:
    heads = {
        "absent": {"labels_path": str(tmp_path / "absent.jsonl")},
        "binary": {"task": "binary"},
        "fine": {},
        "unknown": {"label_key": "nothing"},
    }
    made = plan(heads)
    assert [problem.partition(":")[0] for problem in made.problems] == ["head absent", "head binary", "head unknown"]
    assert "absent.jsonl" in made.problems[0]
    assert list(made.to_json()["heads"]) == ["fine"]


def test_embeddings_that_are_not_there_are_a_problem(plan: PlanJob, tmp_path: Path) -> None:
    (problem,) = plan({"quality": {}}, embeddings_directory=tmp_path / "nowhere").problems
    assert "nowhere does not exist" in problem


@pytest.mark.parametrize(
    ("error", "reason"),
    [(PermissionError(13, "Permission denied"), "Permission denied"), (OSError("no HDF5\nhere"), "no HDF5 here")],
)
def test_an_input_that_cannot_be_read_is_a_problem_with_its_reason(
    plan: PlanJob, monkeypatch: pytest.MonkeyPatch, error: OSError, reason: str
) -> None:
    def fail(_: Any) -> None:
        raise error

    monkeypatch.setattr("mlfilter_core.plan.training_plan.divide_documents", fail)
    assert plan({"quality": {}}).problems == [f"head quality: an input cannot be read ({reason})"]


def test_all_facts_are_json(plan: PlanJob) -> None:
    assert json.loads(json.dumps(plan({"quality": {}}).to_json()))["flow"] == "train_head"
