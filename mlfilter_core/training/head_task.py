"""The task of a head, and its requirements for labels."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlfilter_core.config.training import HeadRecipe
from mlfilter_core.errors import TrainingError

N_SHOWN = 5


@dataclass(frozen=True)
class HeadTask:
    """What a head predicts.

    Attributes:
        kind: `regression`, `binary`, `multiclass` or `multilabel`.
        n_outputs: Number of outputs of the head.
        names: Names of the classes, of the labels, or of several targets; empty for a regression of one target.
    """

    kind: str
    n_outputs: int
    names: tuple[str, ...]


def head_task(recipe: HeadRecipe, labels: NDArray[np.float32]) -> HeadTask:
    """Returns the task of a head.

    Args:
        recipe: Sets the kind of task, and may name the targets or classes.
        labels: float32 (n, n_targets), finite.

    Raises:
        TrainingError: The labels do not fit the task, or are all equal.
    """
    n_targets = labels.shape[1]
    if recipe.task in ("binary", "multiclass") and n_targets > 1:
        raise TrainingError(
            f"task: {recipe.task} takes one label, and there are {n_targets}; set label_key to one of them, or task: "
            "multilabel"
        )
    for i in range(n_targets):
        if np.ptp(labels[:, i]) == 0:
            raise TrainingError(f"all {len(labels)} labels are {labels[0, i]:g}; there is nothing to learn from them")
    if recipe.task == "regression":
        return HeadTask("regression", n_targets, _target_names(recipe, n_targets))
    values = np.unique(labels)
    if recipe.task == "multiclass":
        return _multiclass(recipe, values)
    if not set(values.tolist()) <= {0.0, 1.0}:
        raise TrainingError(
            f"task: {recipe.task} takes labels 0 and 1; there are {_shown(values)}; set scale: [0, 1], or another task"
        )
    if recipe.task == "multilabel":
        return HeadTask("multilabel", n_targets, _target_names(recipe, n_targets) or _only_name(recipe))
    return HeadTask("binary", 1, recipe.label_names or ("0", "1"))


def label_weights(labels: NDArray[np.float32], balance: str) -> NDArray[np.float32]:
    """Returns the weight of each document in the loss, float32 (n,), 1 on average.

    Args:
        labels: float32 (n, n_targets).
        balance: `none` weights all documents equally; `labels` gives every label, rounded to an integer, the same total
            weight.
    """
    if balance == "none":
        return np.ones(len(labels), np.float32)
    _, places, counts = np.unique(np.rint(labels[:, 0]), return_inverse=True, return_counts=True)
    return (len(labels) / (len(counts) * counts[places])).astype(np.float32)


def _target_names(recipe: HeadRecipe, n_targets: int) -> tuple[str, ...]:
    """Returns the given names, the last parts of the keys (`education` of `scores.education`) if unique, or numbers."""
    if recipe.label_names and len(recipe.label_names) != n_targets:
        raise TrainingError(
            f"label_names has {len(recipe.label_names)} names, and there are {n_targets} targets; correct label_names"
        )
    if n_targets == 1:
        return ()
    keys = recipe.label_key if isinstance(recipe.label_key, tuple) else ()
    last_parts = tuple(key.rpartition(".")[2] for key in keys)
    numbers = tuple(map(str, range(n_targets)))
    return recipe.label_names or (last_parts if len(set(last_parts)) == n_targets else numbers)


def _only_name(recipe: HeadRecipe) -> tuple[str]:
    """Returns the name of a single label."""
    keys = (recipe.label_key,) if isinstance(recipe.label_key, str) else recipe.label_key or ("0",)
    return ((recipe.label_names or keys)[0].rpartition(".")[2],)


def _multiclass(recipe: HeadRecipe, values: NDArray[np.float32]) -> HeadTask:
    if (values != np.round(values)).any() or values[0] < 0:
        raise TrainingError(
            f"task: multiclass takes class indices, from 0; there are {_shown(values)}; set another task"
        )
    n_classes = len(recipe.label_names) or int(values[-1]) + 1
    if values[-1] >= n_classes:
        raise TrainingError(f"there is a label {values[-1]:g}, but label_names has {n_classes} names, from 0")
    absent = sorted(set(range(n_classes)) - set(values.astype(int).tolist()))
    if absent:
        raise TrainingError(
            f"no document has the label {absent[0]}; number the classes without gaps, or train a regression"
        )
    return HeadTask("multiclass", n_classes, recipe.label_names or tuple(map(str, range(n_classes))))


def _shown(values: NDArray[np.float32]) -> str:
    return ", ".join(f"{value:g}" for value in values[:N_SHOWN]) + (", ..." if len(values) > N_SHOWN else "")
