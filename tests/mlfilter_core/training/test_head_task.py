from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mlfilter_core.config.training import HeadRecipe
from mlfilter_core.errors import TrainingError
from mlfilter_core.training.head_task import HeadTask, head_task, label_weights


def column(*labels: float) -> NDArray[np.float32]:
    return np.array(labels, np.float32)[:, None]


@pytest.mark.parametrize(
    ("recipe", "labels", "task"),
    [
        (HeadRecipe(), column(1, 2.5), HeadTask("regression", 1, ())),
        (HeadRecipe(label_names=("quality",)), column(1, 2), HeadTask("regression", 1, ())),
        (HeadRecipe(label_key=("s.a", "s.b")), np.eye(2), HeadTask("regression", 2, ("a", "b"))),
        (HeadRecipe(label_key=("s.a", "t.a")), np.eye(2), HeadTask("regression", 2, ("0", "1"))),
        (HeadRecipe(label_names=("x", "y")), np.eye(2), HeadTask("regression", 2, ("x", "y"))),
        (HeadRecipe(task="binary"), column(0, 1), HeadTask("binary", 1, ("0", "1"))),
        (HeadRecipe(task="binary", label_names=("bad", "good")), column(0, 1), HeadTask("binary", 1, ("bad", "good"))),
        (HeadRecipe(task="multiclass"), column(0, 2, 1), HeadTask("multiclass", 3, ("0", "1", "2"))),
    ],
)
def test_a_recipe_and_its_labels_make_a_task(recipe: HeadRecipe, labels: Any, task: HeadTask) -> None:
    assert head_task(recipe, labels) == task


@pytest.mark.parametrize(
    ("recipe", "labels", "message"),
    [
        ({}, column(3, 3, 3), "all 3 labels are 3; there is nothing to learn from them"),
        ({"task": "multiclass"}, column(1, 1), "all 2 labels are 1"),
        ({"label_names": ("a", "b")}, column(1, 2), "label_names names 2 targets, and there are 1"),
        ({"task": "binary"}, np.eye(2), "task: binary takes one label, and there are 2; set label_key to one of them"),
        ({"task": "binary"}, column(0, 1, 2), r"task: binary takes labels 0 and 1; there are 0, 1, 2; set scale"),
        ({"task": "multiclass"}, column(0, 1.5), "takes the numbers of classes, from 0; there are 0, 1.5"),
        ({"task": "multiclass"}, column(-1, 1), "takes the numbers of classes, from 0; there are -1, 1"),
        ({"task": "multiclass"}, column(0, 3), "no document has the label 1; number the classes without gaps"),
        (
            {"task": "multiclass", "label_names": ("a", "b")},
            column(0, 2),
            "there is a label 2, but label_names names 2",
        ),
    ],
)
def test_labels_of_no_such_task_are_refused(recipe: dict[str, Any], labels: Any, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        head_task(HeadRecipe(**recipe), labels)


def test_every_label_weighs_the_same_in_all() -> None:
    labels = column(0, 0.2, 0, 1, 1, 4)
    weights = label_weights(labels, "labels")
    np.testing.assert_allclose(weights, [2 / 3, 2 / 3, 2 / 3, 1, 1, 2])
    assert weights.mean() == pytest.approx(1)
    assert label_weights(labels, "none").tolist() == [1] * 6


def test_metrics_of_a_regression() -> None:
    """By hand: errors 1, 0, -1, 0; ranks 1 2 3 4 and 2 1 3 4, whose squared differences add up to 2."""
    metrics = HeadTask("regression", 1, ()).metrics(column(2, 1, 2, 4), column(1, 1, 3, 4))
    assert metrics["mae"] == 0.5
    assert metrics["mse"] == 0.5
    assert metrics["r2"] == pytest.approx(1 - 2 / 6.75)  # the labels' squared distances from 2.25 add up to 6.75
    metrics = HeadTask("regression", 1, ()).metrics(column(2, 1, 3, 4), column(1, 2, 3, 4))
    assert metrics["spearman"] == pytest.approx(1 - 6 * 2 / (4 * 15))
    assert metrics["pearson"] == pytest.approx(0.8)


def test_metrics_that_are_not_defined_are_none() -> None:
    metrics = HeadTask("regression", 1, ()).metrics(column(1, 1), column(1, 2))
    assert (metrics["spearman"], metrics["pearson"], metrics["mse"]) == (None, None, 0.5)
    assert HeadTask("regression", 1, ()).metrics(column(1, 2), column(2, 2))["r2"] is None
    assert HeadTask("binary", 1, ("0", "1")).metrics(column(1, -1), column(1, 1))["roc_auc"] is None


def test_metrics_of_several_targets_have_their_names() -> None:
    outputs, labels = np.array([[1, 5], [2, 6]], np.float32), np.array([[1, 4], [2, 8]], np.float32)
    metrics = HeadTask("regression", 2, ("a", "b")).metrics(outputs, labels)
    assert (metrics["a.mae"], metrics["b.mae"]) == (0, 1.5)


def test_metrics_of_classifiers() -> None:
    """By hand: of four documents, the third is taken for the other class; its pair is the one in four out of order."""
    metrics = HeadTask("binary", 1, ("0", "1")).metrics(column(-2, -1, 1, 2), column(0, 1, 0, 1))
    assert metrics["accuracy"] == 0.5
    assert metrics["roc_auc"] == 0.75
    probabilities = 1 / (1 + np.exp([2, 1, -1, -2]))
    expected = -np.log([1 - probabilities[0], probabilities[1], 1 - probabilities[2], probabilities[3]]).mean()
    assert metrics["log_loss"] == pytest.approx(expected, abs=1e-5)
    logits = np.array([[5, 0, 0], [0, 5, 0], [0, 5, 0], [0, 0, 5]], np.float32)
    metrics = HeadTask("multiclass", 3, ("a", "b", "c")).metrics(logits, column(0, 1, 2, 2))
    assert metrics["accuracy"] == 0.75
    assert metrics["macro_f1"] == pytest.approx((1 + 2 / 3 + 2 / 3) / 3, abs=1e-5)
