import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from safetensors.numpy import load_file

from flows.annotate import annotate
from flows.embed import embed
from flows.pipeline import pipeline
from flows.running.finished import finished_before
from flows.running.report import FilesFailedError, RunReport
from flows.train_head import train_head
from mlfilter_core.compute.devices import pick_device
from mlfilter_core.config.job_files import load_job
from mlfilter_core.config.training import HeadRecipe, TrainingJob
from mlfilter_core.embedding_store.layout import EMBEDDING_SUFFIXES
from mlfilter_core.errors import HeadError
from mlfilter_core.files.task_files import find_files
from mlfilter_core.heads.checkpoint_formats import load_head
from mlfilter_core.training.train_head import train_head as train_head_directly
from mlfilter_core.training.train_request import TrainRequest
from tests.flows.conftest import WriteJob

RECIPE: dict[str, Any] = {"hidden_dims": [], "learning_rate": 0.02, "batch_size": 4, "max_epochs": 5, "folds": 2}

WriteTrainJob = Callable[..., Path]


@pytest.fixture
def train_job(tmp_path: Path) -> WriteTrainJob:
    """Writes a job file over the embeddings in out/embeddings; keyword arguments are recipes, by the heads' names."""

    def write(**heads: dict[str, Any]) -> Path:
        params = {
            "embeddings_directory": str(tmp_path / "out" / "embeddings"),
            "output_dir": str(tmp_path / "out"),
            "heads": {name: {**RECIPE, **recipe} for name, recipe in heads.items()},
        }
        path = tmp_path / "train.yaml"
        path.write_text(yaml.safe_dump({"params": params, "local_settings": {"workers": 1}}))
        return path

    return write


def test_the_flow_equals_the_direct_computation(
    embed_job: WriteJob, train_job: WriteTrainJob, tmp_path: Path, client: SyncPrefectClient
) -> None:
    embed(embed_job(save_labels=True))
    report = train_head(train_job(quality={}, other={"seed": 3}))
    assert [(row.output, row.status) for row in report.reports] == [
        (str(tmp_path / "out" / "heads" / f"{name}.safetensors"), "trained") for name in ("other", "quality")
    ]
    files = [file.path for file in find_files(tmp_path / "out" / "embeddings", "**/*", EMBEDDING_SUFFIXES)]
    direct = tmp_path / "direct.safetensors"
    train_head_directly(TrainRequest("quality", HeadRecipe(**RECIPE), files), direct, pick_device("cpu"))
    paths = (tmp_path / "out/heads/quality.safetensors", direct)
    made, expected = map(load_file, paths)
    assert made.keys() == expected.keys()
    for name, tensor in made.items():
        np.testing.assert_allclose(tensor, expected[name], rtol=1e-4, atol=1e-5)
    assert len({str(load_head("quality", path).encoder) for path in paths}) == 1
    (log,) = (tmp_path / "out" / "logs").glob("train_head-*/files.jsonl")
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(row["file"], row["documents"]) for row in rows] == [("other.safetensors", 21), ("quality.safetensors", 21)]
    wanted = ArtifactFilter(key=ArtifactFilterKey(any_=["train-head-summary"]))
    assert client.read_artifacts(artifact_filter=wanted)


def test_a_head_that_cannot_be_trained_does_not_stop_the_others(
    embed_job: WriteJob, train_job: WriteTrainJob, tmp_path: Path
) -> None:
    embed(embed_job(save_labels=True))
    job = train_job(quality={}, classes={"task": "binary"})
    with pytest.raises(FilesFailedError, match=r"classes.safetensors: task: binary takes labels 0 and 1; there are"):
        train_head(job)
    assert (tmp_path / "out" / "heads" / "quality.safetensors").exists()
    report = train_head(train_job(quality={}))
    assert [row.status for row in report.reports] == ["skipped"]
    assert isinstance(finished_before(load_job(train_job(quality={}), TrainingJob)), RunReport)


def test_the_whole_way_from_texts_to_scores(
    embed_job: WriteJob, train_job: WriteTrainJob, annotate_job: WriteJob, tmp_path: Path
) -> None:
    trained = {"mine": str(tmp_path / "out" / "heads" / "mine.safetensors")}
    reports = pipeline(
        embed_job(save_labels=True), annotate_job(regression_head_checkpoints=trained), train_job(mine={})
    )
    assert [report.flow for report in reports] == ["embed", "train_head", "annotate"]
    lines = (tmp_path / "out" / "annotated_data" / "a" / "x.jsonl").read_text().splitlines()
    assert [set(json.loads(line)) for line in lines] == [{"document_id", "score_mine"}] * 5


def test_a_trained_head_is_refused_for_embeddings_of_another_encoder(
    embed_job: WriteJob, train_job: WriteTrainJob, annotate_job: WriteJob, tmp_path: Path
) -> None:
    embed(embed_job(save_labels=True))
    train_head(train_job(mine={}))
    embed(embed_job(max_length=8, embedding_dir="short"))
    job = annotate_job(
        regression_head_checkpoints={"mine": str(tmp_path / "out" / "heads" / "mine.safetensors")},
        embeddings_directory=str(tmp_path / "out" / "short"),
    )
    with pytest.raises(HeadError, match=r"head mine was trained on .*they differ in max_length \(64 and 8\)"):
        annotate(job)
