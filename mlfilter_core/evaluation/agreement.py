"""How far predicted scores agree with true ones."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import krippendorff
import numpy as np
from numpy.typing import NDArray
from scipy import stats
from sklearn import metrics

from mlfilter_core.evaluation.resampling import Pairs, krippendorff_alpha
from mlfilter_core.evaluation.scale import Scale

Floats = NDArray[np.float64]
Places = NDArray[np.int64]
# krippendorff compares all distinct scores with each other: 18 s and more for the 500 of a regression head.
MAX_DISTINCT = 50
NO_DOCUMENTS = "no document has a valid score on both sides"


@dataclass(frozen=True)
class Agreement:
    """Measures of agreement, under the names that ML-Filter gave them, and others in the same manner.

    Attributes:
        values: By name; None where the measure is undefined.
        undefined: Why it is, by name.
    """

    values: dict[str, float | None] = field(default_factory=dict)
    undefined: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, why_undefined: str | None, measure: Callable[[], float]) -> None:
        """Adds a measure, which is computed only where it is defined."""
        self.values[name] = None if why_undefined else float(measure())
        if why_undefined:
            self.undefined[name] = why_undefined


def agreement(truth: Floats, predicted: Floats, scale: Scale, thresholds: Sequence[float]) -> Agreement:
    """Returns all measures.

    Of labels are accuracy (`Acc`, and `CA-<label>` of each class), the F1 scores, `Fleiss`, `Cohen` and
    `Cohen-Quadratic`: a score stands for the label next to it, half way for the higher one. Of the scores as they are
    the rest: `MAE`, `MSE`, the correlations, Krippendorff's ordinal alpha, and what concerns a threshold, which a score
    reaches or does not. `TA-<t>` is the share of documents of which both sides reach it or neither does.

    Args:
        truth: float64 (n,), finite; n may be 0.
        predicted: The same.
        scale: The labels.
        thresholds: Of the binary measures.
    """
    found = Agreement()
    nothing = None if len(truth) else NO_DOCUMENTS
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scipy's, of scores that are nearly constant
        _add_rank_measures(found, truth, predicted, nothing)
        _add_label_measures(found, scale.nearest(truth), scale.nearest(predicted), scale, nothing)
        found.add("MAE", nothing, lambda: metrics.mean_absolute_error(truth, predicted))
        found.add("MSE", nothing, lambda: metrics.mean_squared_error(truth, predicted))
        for threshold in thresholds:
            _add_threshold_measures(found, truth >= threshold, predicted >= threshold, threshold, nothing)
    return found


def _add_rank_measures(found: Agreement, truth: Floats, predicted: Floats, nothing: str | None) -> None:
    constant = nothing or _why_constant(truth, "true") or _why_constant(predicted, "predicted")
    found.add("Spearman", constant, lambda: stats.spearmanr(truth, predicted).statistic)
    found.add("Kendall", constant, lambda: stats.kendalltau(truth, predicted).statistic)
    found.add("Pearson", constant, lambda: stats.pearsonr(truth, predicted).statistic)
    one_score = nothing or _why_constant(np.concatenate([truth, predicted]), "true and predicted")
    found.add("Krippendorff", one_score, lambda: _krippendorff(truth, predicted))


def _add_label_measures(found: Agreement, true: Places, predicted: Places, scale: Scale, nothing: str | None) -> None:
    places = np.arange(len(scale.labels))
    labels = np.array(scale.labels)
    one_label = nothing or _why_constant(labels[np.concatenate([true, predicted])], "true and predicted")
    found.add("Fleiss", one_label, lambda: _fleiss_kappa(true, predicted))
    found.add("Cohen", one_label, lambda: metrics.cohen_kappa_score(true, predicted, labels=places))
    found.add(
        *("Cohen-Quadratic", one_label),
        lambda: metrics.cohen_kappa_score(true, predicted, labels=places, weights="quadratic"),
    )
    found.add("Acc", nothing, lambda: metrics.accuracy_score(true, predicted))
    for average in ("macro", "micro", "weighted"):
        found.add(f"{average.title()}-F1", nothing, partial(_f1, true, predicted, average))
    for place, name in enumerate(scale.names):
        _add_class_measures(found, true == place, predicted == place, name, nothing)


def _add_class_measures(
    found: Agreement, true: NDArray[np.bool_], predicted: NDArray[np.bool_], label: str, nothing: str | None
) -> None:
    no_true = nothing or (None if true.any() else f"no document has the true label {label}")
    neither = nothing or (None if (true | predicted).any() else f"no document has the label {label} on either side")
    found.add(f"CA-{label}", no_true, lambda: metrics.recall_score(true, predicted))
    found.add(f"F1-{label}", neither, lambda: metrics.f1_score(true, predicted))


def _add_threshold_measures(
    found: Agreement, true: NDArray[np.bool_], predicted: NDArray[np.bool_], threshold: float, nothing: str | None
) -> None:
    no_true = nothing or (None if true.any() else f"no true score reaches {threshold:g}")
    no_predicted = nothing or (None if predicted.any() else f"no predicted score reaches {threshold:g}")
    neither = nothing or (None if (true | predicted).any() else f"no score reaches {threshold:g}")
    found.add(f"TA-{threshold}", nothing, lambda: metrics.accuracy_score(true, predicted))
    found.add(f"Binary-Precision-{threshold}", no_predicted, lambda: metrics.precision_score(true, predicted))
    found.add(f"Binary-Recall-{threshold}", no_true, lambda: metrics.recall_score(true, predicted))
    found.add(f"Binary-F1-{threshold}", neither, lambda: metrics.f1_score(true, predicted))


def _f1(true: Places, predicted: Places, average: str) -> float:
    return float(metrics.f1_score(true, predicted, average=average, zero_division=0))


def _krippendorff(truth: Floats, predicted: Floats) -> float:
    scores = np.stack([truth, predicted])
    if len(np.unique(scores)) > MAX_DISTINCT:
        pairs = Pairs(truth, predicted)
        return float(krippendorff_alpha(pairs, pairs.counts[None])[0])
    return float(krippendorff.alpha(scores, level_of_measurement="ordinal"))


def _fleiss_kappa(true: Places, predicted: Places) -> float:
    """Fleiss' kappa of two raters, who are taken for interchangeable (Fleiss, 1971)."""
    shares = np.bincount(np.concatenate([true, predicted])) / (2 * len(true))
    by_chance = np.sum(shares**2)
    return float((np.mean(true == predicted) - by_chance) / (1 - by_chance))


def _why_constant(scores: Floats, whose: str) -> str | None:
    return f"all {whose} scores are {scores[0]:g}" if np.all(scores == scores[0]) else None
