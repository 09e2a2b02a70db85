import dataclasses
import json
import xml.etree.ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from mlfilter_core.config.training import HeadRecipe
from mlfilter_core.errors import HeadError, OutputConflictError, TrainingError
from mlfilter_core.heads.checkpoint_formats import load_head
from mlfilter_core.heads.head import find_mismatched_heads, score
from mlfilter_core.notebook import score_embeddings
from mlfilter_core.training.train_head import train_head
from mlfilter_core.training.train_request import TrainReport, TrainRequest, describe_metrics, finished_head
from mlfilter_core.work.progress import Progress, heard_by
from tests.conftest import WriteLines
from tests.mlfilter_core.training.conftest import WriteLabelled, embeddings_of, label_of

FAST: dict[str, Any] = {"hidden_dims": (), "learning_rate": 0.02, "batch_size": 32, "max_epochs": 40}
CPU = torch.device("cpu")

Train = Callable[..., TrainReport]


@pytest.fixture
def head(tmp_path: Path) -> Path:
    return tmp_path / "heads" / "quality.safetensors"


@pytest.fixture
def train(head: Path) -> Train:
    def train(*files: Path, recipe: dict[str, Any] | None = None, **other: Any) -> TrainReport:
        request = TrainRequest("quality", HeadRecipe(**{**FAST, **(recipe or {})}), files, **other)
        return train_head(request, head, CPU)

    return train


def test_a_trained_head_predicts_the_labels_of_unseen_documents(
    write_labelled: WriteLabelled, train: Train, head: Path
) -> None:
    report = train(write_labelled("a.h5"), write_labelled("b.h5", seed=1))
    assert report.documents == report.trained_on + report.held_out == 400
    assert 50 < report.held_out < 110
    assert (report.status, report.output, report.left_out) == ("trained", str(head), {})
    assert report.metrics["spearman"] == pytest.approx(1, abs=0.01)
    unseen = embeddings_of(20, seed=5)
    given = score([load_head("quality", head)], unseen)
    np.testing.assert_allclose(given[:, 0], label_of(unseen), atol=0.02)


def test_a_head_carries_the_encoder_of_its_embeddings(write_labelled: WriteLabelled, train: Train, head: Path) -> None:
    train(write_labelled())
    loaded = load_head("quality", head)
    stated = {"weights_sha256": "a" * 64, "pooling": "mean", "max_length": 512, "is_normalized": False}
    assert loaded.encoder == {**stated, "add_eos": False}
    with pytest.raises(HeadError, match=r"trained on embeddings of .*; they differ in pooling \('mean' and 'cls'\)"):
        find_mismatched_heads([loaded], {**loaded.encoder, "pooling": "cls"}, "x.h5", False)


def test_metrics_and_a_figure_are_written_beside_the_head(
    write_labelled: WriteLabelled, train: Train, head: Path
) -> None:
    report = train(write_labelled())
    told = json.loads(head.with_name("quality.metrics.json").read_text())
    assert told["metrics"] == report.metrics
    assert told["documents"] == 200
    assert told["metrics_of_folds"]["spearman"] > 0.9
    assert len(told["training_loss"]) == len(told["validation_loss"]) >= report.epochs
    picture = xml.etree.ElementTree.parse(head.with_name("quality.svg")).getroot()
    assert picture.tag.endswith("svg")
    assert {path.name for path in head.parent.iterdir() if not path.name.startswith(".")} == {
        *("quality.safetensors", "quality.metrics.json", "quality.svg", "quality.held_out.jsonl")
    }


def test_labels_are_joined_from_a_file(write_labelled: WriteLabelled, write_lines: WriteLines, train: Train) -> None:
    path = write_labelled(label_keys=None)
    labels = label_of(embeddings_of(200)).tolist()
    records: list[Any] = [{"id": f"x-{i}", "score": label} for i, label in enumerate(labels[:150])]
    file = write_lines("labels.jsonl", [*records, b"{", {"id": "elsewhere", "score": 1}])
    report = train(path, recipe={"labels_path": file})
    assert report.documents == 150
    assert report.left_out == {"without_label": 50, "label_without_document": 1}
    assert report.metrics["spearman"] == pytest.approx(1, abs=0.02)
    assert [remark.partition(":")[0] for remark in report.remarks] == [
        *("lines of labels_path without a valid label", "1 labels are of no document here, such as elsewhere")
    ]


@pytest.mark.parametrize("task", ["binary", "multiclass"])
def test_a_trained_classifier_is_loaded_as_one(
    write_labelled: WriteLabelled, train: Train, head: Path, task: str
) -> None:
    n_classes = 2 if task == "binary" else 3
    names = ("low", "middle", "high")[:n_classes]
    labels = np.digitize(embeddings_of(200)[:, 0], [0] if task == "binary" else [-0.4, 0.4])
    recipe = {"task": task, "label_names": names, "label_key": "score", "balance": "labels"}
    assert train(write_labelled(labels=labels), recipe=recipe).metrics["accuracy"] > 0.8  # type: ignore[operator]
    loaded = load_head("quality", head)
    assert (loaded.task, loaded.labels, loaded.n_outputs) == (task, names, 1 if task == "binary" else 3)


def test_a_head_of_several_labels_is_trained_and_loaded_as_one(
    write_labelled: WriteLabelled, train: Train, head: Path
) -> None:
    labels = (embeddings_of(200)[:, :2] > 0).astype(int)
    recipe = {"task": "multilabel", "label_key": ["tags.news", "tags.spam"]}
    report = train(write_labelled(labels=labels, label_keys=["tags.news", "tags.spam"]), recipe=recipe)
    assert report.metrics["news.accuracy"] > 0.8  # type: ignore[operator]
    assert report.metrics["macro_f1"] > 0.8  # type: ignore[operator]
    loaded = load_head("quality", head)
    assert (loaded.task, loaded.labels, loaded.n_outputs) == ("multilabel", ("news", "spam"), 2)
    held_out = json.loads(head.with_name("quality.held_out.jsonl").read_text().splitlines()[0])
    assert held_out["label"].keys() == {"news", "spam"}
    columns = score_embeddings([loaded], embeddings_of(200))
    found = [[name in row for name in loaded.labels] for row in columns["label_quality"]]
    assert (np.array(found) == labels).mean() > 0.9
    assert list(columns) == ["score_quality_news", "score_quality_spam", "label_quality"]


def test_a_finished_head_is_found_and_tells_its_report(write_labelled: WriteLabelled, train: Train, head: Path) -> None:
    path = write_labelled()
    request = TrainRequest("quality", HeadRecipe(**FAST), [path])
    assert finished_head(request, head) is None
    trained = train(path)
    found = finished_head(request, head)
    assert found == dataclasses.replace(trained, status="skipped", seconds=0.0)


def test_a_head_of_another_request_or_of_other_inputs_is_in_the_way(
    write_labelled: WriteLabelled, write_lines: WriteLines, train: Train, head: Path
) -> None:
    path, labels = write_labelled(), write_lines("l.jsonl", [{"id": f"x-{i}", "score": i % 7} for i in range(200)])
    recipe = {**FAST, "labels_path": labels}
    train(path, recipe=recipe)
    for asked, differing in (
        (TrainRequest("quality", HeadRecipe(**{**recipe, "seed": 1}), [path]), "seed: 0 in the file, 1 asked for"),
        (
            TrainRequest("quality", HeadRecipe(**recipe), [path], test_fraction=0.5),
            "test_fraction: 0.2 in the file, 0.5 asked for",
        ),
        (
            TrainRequest("quality", HeadRecipe(**recipe), [path, write_labelled("b.h5", seed=2)]),
            r"embeddings_sha256: \w{12} in the file, \w{12} asked for",
        ),
    ):
        with pytest.raises(OutputConflictError, match=f"made by another request: {differing}; use another"):
            finished_head(asked, head)
    labels.write_text('{"id": "x-0", "score": 2}\n')
    with pytest.raises(OutputConflictError, match=r"request: labels_sha256: \[.+\] in the file, \[.+\] asked for"):
        finished_head(TrainRequest("quality", HeadRecipe(**recipe), [path]), head)
    head.write_bytes(b"something else")
    with pytest.raises(OutputConflictError, match="is not a head that was trained here"):
        finished_head(TrainRequest("quality", HeadRecipe(**recipe), [path]), head)


def test_training_that_fails_leaves_nothing(write_labelled: WriteLabelled, train: Train, head: Path) -> None:
    with pytest.raises(TrainingError, match="all 200 labels are 1"):
        train(write_labelled(labels=[1] * 200))
    assert not head.parent.exists()


def test_a_plain_reader_trains_on_our_files_as_the_predecessor_does(write_labelled: WriteLabelled) -> None:
    """Its dataset and metrics read the first group, and index labels by task."""
    with h5py.File(write_labelled(label_keys=["score"]), "r") as file:
        group = file[next(iter(file.keys()))]
        embeddings, labels = (torch.from_numpy(group[name][:]).float() for name in ("embeddings", "labels"))
    assert embeddings.shape == (200, 8)
    np.testing.assert_array_equal(labels[:, 0], label_of(embeddings_of(200)))


def test_progress_is_reported_after_epochs(
    write_labelled: WriteLabelled, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlfilter_core.work.progress.TELL_S", 0)
    heard: list[Progress] = []
    with heard_by(heard.append):
        train(write_labelled(), recipe={"max_epochs": 4})
    assert [progress.share for progress in heard] == [0.25, 0.5, 0.75, 1]
    assert {progress.file for progress in heard} == {"quality.safetensors"}


def test_metrics_are_described_in_words() -> None:
    assert describe_metrics({"spearman": 0.61749, "r2": None}) == "spearman 0.617, r2 undefined"
