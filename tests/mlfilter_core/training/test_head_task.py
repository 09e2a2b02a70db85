from typing import Any

import numpy as np
import pytest

from mlfilter_core.config.training import HeadRecipe
from mlfilter_core.errors import TrainingError
from mlfilter_core.training.head_task import HeadTask, head_task, label_weights
from tests.mlfilter_core.training.conftest import column


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
        (HeadRecipe(task="multilabel", label_key=("s.a", "s.b")), np.eye(2), HeadTask("multilabel", 2, ("a", "b"))),
        (HeadRecipe(task="multilabel", label_names=("x", "y")), np.eye(2), HeadTask("multilabel", 2, ("x", "y"))),
        (HeadRecipe(task="multilabel", label_key="s.spam"), column(0, 1), HeadTask("multilabel", 1, ("spam",))),
        (HeadRecipe(task="multilabel"), column(0, 1), HeadTask("multilabel", 1, ("0",))),
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
        ({"label_names": ("a", "b")}, column(1, 2), "label_names has 2 names, and there are 1 targets"),
        ({"task": "binary"}, np.eye(2), "task: binary takes one label, and there are 2; set label_key to one of them"),
        ({"task": "binary"}, column(0, 1, 2), r"task: binary takes labels 0 and 1; there are 0, 1, 2; set scale"),
        (
            {"task": "multilabel"},
            np.array([[0, 1], [1, 2]]),
            r"task: multilabel takes labels 0 and 1; there are 0, 1, 2",
        ),
        ({"task": "multilabel", "label_names": ("a",)}, np.eye(2), "label_names has 1 names, and there are 2 targets"),
        ({"task": "multiclass"}, column(0, 1.5), "takes class indices, from 0; there are 0, 1.5"),
        ({"task": "multiclass"}, column(-1, 1), "takes class indices, from 0; there are -1, 1"),
        ({"task": "multiclass"}, column(0, 3), "no document has the label 1; number the classes without gaps"),
        (
            {"task": "multiclass", "label_names": ("a", "b")},
            column(0, 2),
            "there is a label 2, but label_names has 2",
        ),
    ],
)
def test_labels_that_do_not_fit_the_task_are_refused(recipe: dict[str, Any], labels: Any, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        head_task(HeadRecipe(**recipe), labels)


def test_balanced_labels_have_equal_total_weights() -> None:
    labels = column(0, 0.2, 0, 1, 1, 4)
    weights = label_weights(labels, "labels")
    np.testing.assert_allclose(weights, [2 / 3, 2 / 3, 2 / 3, 1, 1, 2])
    assert weights.mean() == pytest.approx(1)
    assert label_weights(labels, "none").tolist() == [1] * 6
