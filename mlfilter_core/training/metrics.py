"""Metrics of a head on labelled documents."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlfilter_core.training.head_task import HeadTask

Metrics = dict[str, float | None]


def head_metrics(task: HeadTask, outputs: NDArray[np.float32], labels: NDArray[np.float32]) -> Metrics:
    """Returns the metrics of a head.

    Args:
        task: Task of the head.
        outputs: float32 (n, n_outputs), outputs of the head: the logits of a classifier or of its labels.
        labels: float32 (n, n_targets).

    Returns:
        Values by name, `<target>.<name>` with several targets or labels; None for an undefined value, such as a
        correlation with labels that are all equal.
    """
    if task.kind == "multilabel":
        return _of_multilabel(task.names, outputs, labels.astype(int))
    if task.kind != "regression":
        return _of_classifier(outputs, labels[:, 0].astype(int))
    if task.n_outputs == 1:
        return _of_regression(outputs[:, 0], labels[:, 0])
    return {
        f"{target}.{name}": value
        for i, target in enumerate(task.names)
        for name, value in _of_regression(outputs[:, i], labels[:, i]).items()
    }


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
    from scipy.special import softmax
    from sklearn.metrics import accuracy_score, average_precision_score, f1_score, log_loss, roc_auc_score

    is_binary = outputs.shape[1] == 1
    logits = np.concatenate([np.zeros_like(outputs), outputs], axis=1) if is_binary else outputs
    probabilities = softmax(logits.astype(np.float64), axis=1)
    likeliest = probabilities.argmax(axis=1)
    metrics: dict[str, Any] = {
        "accuracy": accuracy_score(labels, likeliest),
        "macro_f1": f1_score(labels, likeliest, average="macro", zero_division=0.0),
        "log_loss": log_loss(labels, probabilities, labels=np.arange(logits.shape[1])),
    }
    if is_binary:
        has_both = 0 < labels.sum() < len(labels)
        metrics["roc_auc"] = roc_auc_score(labels, probabilities[:, 1]) if has_both else None
        metrics["average_precision"] = average_precision_score(labels, probabilities[:, 1]) if has_both else None
    return {name: None if value is None else _number(value) for name, value in metrics.items()}


def _of_multilabel(names: Sequence[str], outputs: NDArray[np.float32], labels: NDArray[np.int_]) -> Metrics:
    """Returns the metrics of each label, and before them the means of these.

    `macro_f1` is the mean F1 of the labels, not of a label and its absence. `exact_match` is the share of documents all
    of whose labels are right.
    """
    from sklearn.metrics import f1_score

    own: dict[str, Metrics] = {}
    for i, name in enumerate(names):
        of_label = _of_classifier(outputs[:, i : i + 1], labels[:, i])
        f1 = f1_score(labels[:, i], outputs[:, i] >= 0, zero_division=0.0)
        own[name] = {"f1": _number(f1), **{key: value for key, value in of_label.items() if key != "macro_f1"}}
    metrics: Metrics = {"accuracy": _mean(own, "accuracy"), "macro_f1": _mean(own, "f1")}
    metrics |= {key: _mean(own, key) for key in ("log_loss", "roc_auc", "average_precision")}
    metrics["exact_match"] = _number(((outputs >= 0) == labels).all(axis=1).mean())
    return metrics | {f"{name}.{key}": value for name, values in own.items() for key, value in values.items()}


def _mean(metrics: Mapping[str, Metrics], key: str) -> float | None:
    """Returns the mean of a metric over the labels for which it is defined."""
    values = [value for own in metrics.values() if (value := own[key]) is not None]
    return _number(np.mean(values)) if values else None


def _number(value: Any) -> float:
    return round(float(value), 6)
