"""What the labels of a task must be, and which numbers tell how good a head for it is."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlfilter_core.config.training import HeadRecipe
from mlfilter_core.errors import TrainingError

Metrics = dict[str, float | None]

N_SHOWN = 5


@dataclass(frozen=True)
class HeadTask:
    """What a head is to do.

    Attributes:
        kind: `regression`, `binary` or `multiclass`.
        n_outputs: Of the head.
        names: Of several targets, or of the classes; empty for a regression of one target.
    """

    kind: str
    n_outputs: int
    names: tuple[str, ...]

    def metrics(self, outputs: NDArray[np.float32], labels: NDArray[np.float32]) -> Metrics:
        """Returns how good a head is.

        Args:
            outputs: float32 (n, n_outputs), as the head gives them: the logits of a classifier.
            labels: float32 (n, n_targets).

        Returns:
            By name, of several targets `<target>.<name>`; None where one is not defined, as a correlation with labels
            that are all equal.
        """
        if self.kind != "regression":
            return _of_classifier(outputs, labels[:, 0].astype(int))
        if self.n_outputs == 1:
            return _of_regression(outputs[:, 0], labels[:, 0])
        return {
            f"{target}.{name}": value
            for i, target in enumerate(self.names)
            for name, value in _of_regression(outputs[:, i], labels[:, i]).items()
        }


def head_task(recipe: HeadRecipe, labels: NDArray[np.float32]) -> HeadTask:
    """Returns the task of a recipe over labels.

    Args:
        recipe: Says the kind, and may name targets or classes.
        labels: float32 (n, n_targets), finite.

    Raises:
        TrainingError: The labels are none of such a task, or all the same.
    """
    n_targets = labels.shape[1]
    if recipe.task != "regression" and n_targets > 1:
        raise TrainingError(
            f"task: {recipe.task} takes one label, and there are {n_targets}; set label_key to one of them"
        )
    for i in range(n_targets):
        if np.ptp(labels[:, i]) == 0:
            raise TrainingError(f"all {len(labels)} labels are {labels[0, i]:g}; there is nothing to learn from them")
    if recipe.task == "regression":
        names = recipe.label_names or (_target_names(recipe.label_key, n_targets) if n_targets > 1 else ())
        _check_names(names, n_targets if names else 0, "targets")
        return HeadTask("regression", n_targets, names if n_targets > 1 else ())
    values = np.unique(labels)
    if recipe.task == "binary":
        if not set(values.tolist()) <= {0.0, 1.0}:
            raise TrainingError(
                f"task: binary takes labels 0 and 1; there are {_shown(values)}; set scale: [0, 1], or task"
            )
        return HeadTask("binary", 1, recipe.label_names or ("0", "1"))
    if (values != np.round(values)).any() or values[0] < 0:
        raise TrainingError(
            f"task: multiclass takes the numbers of classes, from 0; there are {_shown(values)}; set task"
        )
    n_classes = len(recipe.label_names) or int(values[-1]) + 1
    if values[-1] >= n_classes:
        raise TrainingError(f"there is a label {values[-1]:g}, but label_names names {n_classes} classes, from 0")
    if len(values) < n_classes:
        absent = sorted(set(range(n_classes)) - {int(value) for value in values})
        raise TrainingError(
            f"no document has the label {absent[0]}; number the classes without gaps, or train a regression"
        )
    return HeadTask("multiclass", n_classes, recipe.label_names or tuple(str(i) for i in range(n_classes)))


def label_weights(labels: NDArray[np.float32], balance: str) -> NDArray[np.float32]:
    """Returns what each document weighs in the loss, 1 on average.

    Args:
        labels: float32 (n, n_targets).
        balance: `labels` lets each label, rounded to a whole number, weigh the same in all; `none` each document.

    Returns:
        float32 (n,).
    """
    if balance == "none":
        return np.ones(len(labels), np.float32)
    _, places, counts = np.unique(np.rint(labels[:, 0]), return_inverse=True, return_counts=True)
    return (len(labels) / (len(counts) * counts[places])).astype(np.float32)


def _target_names(keys: str | Sequence[str] | None, n_targets: int) -> tuple[str, ...]:
    """Returns the last parts of the keys, `education` of `scores.education`, where they differ; else numbers."""
    names = [key.rpartition(".")[2] for key in keys] if keys and not isinstance(keys, str) else []
    return tuple(names) if len(set(names)) == n_targets else tuple(str(i) for i in range(n_targets))


def _check_names(names: Sequence[str], n: int, what: str) -> None:
    if len(names) != n:
        raise TrainingError(f"label_names names {len(names)} {what}, and there are {n}; correct label_names")


def _shown(values: NDArray[np.float32]) -> str:
    return ", ".join(f"{value:g}" for value in values[:N_SHOWN]) + (", ..." if len(values) > N_SHOWN else "")


def _of_regression(outputs: NDArray[np.float32], labels: NDArray[np.float32]) -> Metrics:
    from scipy.stats import pearsonr, spearmanr

    errors = outputs.astype(np.float64) - labels
    varies = np.ptp(outputs) > 0 and np.ptp(labels) > 0
    return {
        "spearman": _number(spearmanr(outputs, labels).statistic) if varies else None,
        "pearson": _number(pearsonr(outputs, labels).statistic) if varies else None,
        "mae": _number(np.abs(errors).mean()),
        "mse": _number((errors**2).mean()),
        "r2": _number(1 - (errors**2).mean() / labels.var(dtype=np.float64)) if np.ptp(labels) > 0 else None,
    }


def _of_classifier(outputs: NDArray[np.float32], labels: NDArray[np.int_]) -> Metrics:
    from sklearn.metrics import accuracy_score, average_precision_score, f1_score, log_loss, roc_auc_score

    is_binary = outputs.shape[1] == 1
    logits = np.concatenate([np.zeros_like(outputs), outputs], axis=1) if is_binary else outputs
    exponents = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    probabilities = exponents / exponents.sum(axis=1, keepdims=True)
    classes = np.arange(logits.shape[1])
    likeliest = probabilities.argmax(axis=1)
    metrics: dict[str, Any] = {
        "accuracy": accuracy_score(labels, likeliest),
        "macro_f1": f1_score(labels, likeliest, average="macro", zero_division=0.0),
        "log_loss": log_loss(labels, probabilities, labels=classes),
    }
    if is_binary:
        has_both = 0 < labels.sum() < len(labels)
        metrics["roc_auc"] = roc_auc_score(labels, probabilities[:, 1]) if has_both else None
        metrics["average_precision"] = average_precision_score(labels, probabilities[:, 1]) if has_both else None
    return {name: None if value is None else _number(value) for name, value in metrics.items()}


def _number(value: Any) -> float:
    return round(float(value), 6)
