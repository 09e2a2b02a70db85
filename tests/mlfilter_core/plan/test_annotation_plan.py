from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mlfilter_core.annotating.annotate_file import annotate_file
from mlfilter_core.annotating.work import annotate_work, load_heads
from mlfilter_core.config.annotation import AnnotationJob
from mlfilter_core.config.embedding import EmbeddingJob
from mlfilter_core.embedding.work import embed_work
from mlfilter_core.files.task_files import TaskFile
from mlfilter_core.heads.head import Head
from mlfilter_core.plan.annotation_plan import plan_annotation
from mlfilter_core.plan.findings import Findings
from mlfilter_core.plan.plan import Plan, PlannedWorkers
from tests.conftest import TINY_DIM, WriteLines
from tests.mlfilter_core.clustering.topics import cluster_job, run_steps

WORKERS = PlannedWorkers(2, 1, 1, False, False, "2 workers on this machine")

PlanJob = Callable[..., Plan]


@pytest.fixture
def plan(tmp_path: Path, write_lines: WriteLines, tiny_model: Path, heads: list[Head]) -> PlanJob:
    """Plans a job over the embeddings of three files; keyword arguments replace parameters."""
    job = {"input_dir": tmp_path / "in", "output_dir": tmp_path / "out", "embedding_model": str(tiny_model)}
    work = embed_work(EmbeddingJob(params={**job, "text_field": "text", "max_batch_tokens": 512}).params)
    for i in range(3):
        own = [{"id": f"{i}-{n}", "text": "word " * (1 + n % 20), "url": f"https://{n}"} for n in range(40 + 10 * i)]
        write_lines(f"in/{i}.jsonl", own)
        work.run(TaskFile(f"{i}.jsonl", str(i), tmp_path / "in"))

    def planned(**params: Any) -> Plan:
        return plan_annotation(job_over(tmp_path, **params), WORKERS, 0, Findings())

    return planned


def job_over(folder: Path, **params: Any) -> AnnotationJob:
    written = {
        "embeddings_directory": folder / "out" / "embeddings",
        "output_dir": folder / "out",
        "output_keys": ["document_id", "text"],
        "regression_head_checkpoints": {"quality": str(folder / "linear.pt"), "topics": str(folder / "mlp.pt")},
        **params,
    }
    return AnnotationJob.model_validate({"params": written})


def test_rows_columns_and_size_are_those_of_a_run(plan: PlanJob, tmp_path: Path) -> None:
    made = plan().to_json()
    assert made["problems"] == []
    assert made["files"]["rows"] == 40 + 50 + 60
    assert made["outputs"]["columns"] == ["score_quality", "score_topics_0", "score_topics_1"]
    assert not (tmp_path / "out" / "annotated_data").exists()
    job = job_over(tmp_path)
    work = annotate_work(job.params)
    loaded = load_heads(job.params)
    written = 0
    for i in range(3):
        file = TaskFile(f"{i}.h5", str(i), tmp_path / "out" / "embeddings")
        written += Path(annotate_file(file, work.request, loaded).output).stat().st_size
    needed = made["outputs"]["needed_bytes"]
    assert needed["low"] <= written <= needed["high"]
    assert needed["value"] == pytest.approx(written, rel=0.02)


def test_clusters_are_joined_as_a_run_joins_them(plan: PlanJob, tmp_path: Path) -> None:
    params = {"clusters_directory": tmp_path / "out" / "clusters", "output_keys": ["document_id", "cluster_name"]}
    (problem,) = plan(**params).problems
    assert "clusters.safetensors is not a file of centroids" in problem
    run_steps(cluster_job(tmp_path))
    assert plan(**params).problems == []
    (tmp_path / "out" / "clusters" / "1.parquet").unlink()
    (problem,) = plan(**params).problems
    assert "1.parquet, the clusters of " in problem


def test_costs_are_those_of_the_documents(plan: PlanJob) -> None:
    made = plan().to_json()
    hours = made["cost"]["hours"]
    assert hours.keys() == {"per_million_documents", "for_the_corpus"}
    assert hours["for_the_corpus"]["value"] == pytest.approx(hours["per_million_documents"]["value"] * 150 / 1e6)


def test_all_problems_are_said_at_once(plan: PlanJob, tmp_path: Path) -> None:
    (tmp_path / "out/embeddings/broken.h5").write_bytes(b"no HDF5")
    torch.save(torch.nn.Linear(TINY_DIM + 1, 1).state_dict(), tmp_path / "wide.pt")
    heads = {"absent": str(tmp_path / "absent.pt"), "wide": str(tmp_path / "wide.pt")}
    said = plan(regression_head_checkpoints=heads).problems
    assert len(said) == 3
    assert any("broken.h5 is not an HDF5 file" in problem for problem in said)
    assert any("head absent: the checkpoint" in problem for problem in said)
    assert any(f"head wide takes embeddings of width {TINY_DIM + 1}" in problem for problem in said)


def test_an_output_key_that_is_nowhere_is_a_problem_with_those_that_there_are(plan: PlanJob) -> None:
    said = "\n".join(plan(output_keys=["document_id", "uri"]).problems)
    assert "params.output_keys: 'uri' is neither in" in said
    assert "there are: document_id" in said
    assert ", id, text, url" in said


def test_a_source_that_is_gone_is_a_problem_where_it_is_needed(plan: PlanJob, tmp_path: Path) -> None:
    (tmp_path / "in" / "1.jsonl").unlink()
    (problem,) = plan().problems
    assert "1.jsonl does not exist" in problem
    assert plan(output_keys=["document_id"]).problems == []


def test_embeddings_of_two_encoders_are_a_problem(plan: PlanJob, tmp_path: Path, tiny_model: Path) -> None:
    job = {"input_dir": tmp_path / "in", "output_dir": tmp_path / "other", "embedding_model": str(tiny_model)}
    work = embed_work(EmbeddingJob(params={**job, "text_field": "text", "prompt": "x "}).params)
    work.run(TaskFile("0.jsonl", "0", tmp_path / "in"))
    (tmp_path / "other/embeddings/0.h5").rename(tmp_path / "out/embeddings/z.h5")
    assert any("were made by different encoders" in problem for problem in plan().problems)


def test_an_ensemble_of_an_absent_head_is_a_problem(plan: PlanJob) -> None:
    (problem,) = plan(ensembles={"all": {"heads": ["quality", "nothing"]}}).problems
    assert "the ensemble all names nothing" in problem


def test_a_value_that_is_nested_too_deep_for_orjson_is_no_problem(
    plan: PlanJob, tmp_path: Path, write_lines: WriteLines, tiny_model: Path
) -> None:
    job = {"input_dir": tmp_path / "in", "output_dir": tmp_path / "out", "embedding_model": str(tiny_model)}
    work = embed_work(EmbeddingJob(params={**job, "text_field": "text", "max_batch_tokens": 512}).params)
    write_lines("in/deep.jsonl", [b'{"text": "a", "deep": ' + b"[" * 500 + b"]" * 500 + b"}"])
    work.run(TaskFile("deep.jsonl", "deep", tmp_path / "in"))
    assert plan(output_keys=["*"]).problems == []


def test_a_folder_that_is_not_there_is_a_problem(plan: PlanJob, tmp_path: Path) -> None:
    (problem,) = plan(embeddings_directory=tmp_path / "nowhere").problems
    assert "nowhere does not exist" in problem


def test_scores_that_are_not_finite_are_a_problem(plan: PlanJob, tmp_path: Path) -> None:
    torch.save({"weight": torch.full((1, TINY_DIM), 1e38), "bias": torch.full((1,), 3e38)}, tmp_path / "huge.pt")
    made = plan(regression_head_checkpoints={"huge": str(tmp_path / "huge.pt")}, model_dtype="float16")
    assert "head huge gives inf" in made.problems[0] or "head huge gives nan" in made.problems[0]
