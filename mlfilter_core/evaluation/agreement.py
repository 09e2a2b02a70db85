"""Measures of how well predicted scores agree with true ones.

Many resamples of the documents are measured at once: a resample is one row of weights over the distinct pairs of
scores, and a measure is a few sums along the rows. The documents themselves are one such row. With a library call for
each measure and resample, the intervals of one evaluation would take hours; the tests compare every measure with
scikit-learn, scipy and krippendorff.

Knows nothing about files.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.stats import kendalltau

from mlfilter_core.evaluation.scale import Scale

Floats = NDArray[np.float64]
Places = NDArray[np.int64]
Measures = dict[str, Floats]

MAX_SIGNED_PAIRS = 2000  # measured: 0.04 ms a resample for 500 pairs and 0.5 ms for 2,000; scipy 0.4 and 1.3 ms
CORRELATIONS = ("Spearman", "Kendall", "Pearson")
KAPPAS = ("Fleiss", "Cohen", "Cohen-Quadratic")
NO_DOCUMENTS = "no document has a valid score on both sides"


@dataclass(frozen=True)
class MeasureOptions:
    """How predicted and true scores are compared.

    Attributes:
        scale: Labels that scores stand for.
        thresholds: Lowest positive score of each set of binary measures.
        n_resamples: Number of resamples for the intervals; 0 computes no intervals.
        seed: Seed of the resamples.
    """

    scale: Scale
    thresholds: tuple[float, ...] = ()
    n_resamples: int = 1000
    seed: int = 0


@dataclass(frozen=True)
class Agreement:
    """Measures of agreement, under the names that ML-Filter uses, or similar ones.

    Attributes:
        values: Value by name; None where the measure is undefined.
        undefined: Reason for each None, by name.
    """

    values: dict[str, float | None]
    undefined: dict[str, str]


class Pairs:
    """The distinct pairs of a true and a predicted score. Labels have few of them, however many the documents are.

    Attributes:
        truth: float64 (c,), finite.
        predicted: float64 (c,), finite.
        place: int64 (n,), number of the pair of each document.
        counts: float64 (c,), number of documents with the pair.
    """

    def __init__(self, truth: Floats, predicted: Floats) -> None:
        """Finds the pairs in two arrays float64 (n,); n may be 0."""
        pairs, self.place, counts = np.unique(
            np.stack([truth, predicted], axis=1), axis=0, return_inverse=True, return_counts=True
        )
        self.truth, self.predicted = pairs.T
        self.counts = counts.astype(np.float64)

    def __len__(self) -> int:
        return len(self.truth)


def agreement(pairs: Pairs, options: MeasureOptions) -> Agreement:
    """Returns all measures of the documents.

    Accuracy (`Acc`; `CA-<label>` within one true label), the F1 scores, `Fleiss`, `Cohen` and `Cohen-Quadratic`
    compare labels: a score stands for the nearest label, halfway between two for the higher one. `MAE`, `MSE`, the
    correlations and Krippendorff's ordinal alpha compare the scores themselves. Binary measures compare which scores
    reach a threshold; `TA-<threshold>` is their accuracy.
    """
    measures = weighted_measures(pairs, pairs.counts[None], options)
    reasons = _why_undefined(pairs, options) if len(pairs) else dict.fromkeys(measures, NO_DOCUMENTS)
    return Agreement(
        values={name: None if name in reasons else float(value[0]) for name, value in measures.items()},
        undefined={name: reasons[name] for name in measures if name in reasons},
    )


def weighted_measures(pairs: Pairs, weights: Floats, options: MeasureOptions) -> Measures:
    """Returns each measure, float64 (b,), for each row of weights; NaN where it is undefined.

    Args:
        pairs: The c distinct pairs.
        weights: float64 (b, c), whole numbers: how many documents have each pair.
        options: Labels and thresholds.
    """
    n = weights.sum(axis=1)
    difference = np.abs(pairs.truth - pairs.predicted)
    with np.errstate(divide="ignore", invalid="ignore"):  # an undefined measure is 0 / 0
        return {
            **_score_measures(pairs, weights),
            **_label_measures(pairs, weights, options.scale),
            "MAE": weights @ difference / n,
            "MSE": weights @ difference**2 / n,
            **_threshold_measures(pairs, weights, options.thresholds),
        }


def _score_measures(pairs: Pairs, weights: Floats) -> Measures:
    n = weights.sum(axis=1)
    true_ranks, true_ties = _ranks(pairs.truth, weights)
    predicted_ranks, predicted_ties = _ranks(pairs.predicted, weights)
    untied = np.sqrt((n**2 - true_ties) * (n**2 - predicted_ties))
    pearson = _correlation(pairs.truth, pairs.predicted, weights)
    return {
        "Spearman": _correlation(true_ranks, predicted_ranks, weights),
        "Kendall": _kendall_tau(pairs, weights, untied),
        "Pearson": np.where(untied > 0, pearson, np.nan),  # rounding can hide that all scores of a row are equal
        "Krippendorff": _krippendorff_alpha(pairs, weights),
    }


def _ranks(values: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Returns the rank of each pair, float64 (b, c), the middle one for ties, and the sum of squared tie sizes."""
    levels, place = np.unique(values, return_inverse=True)
    sizes = _sums(weights, place, len(levels))
    return (np.cumsum(sizes, axis=1) - sizes / 2)[:, place], np.sum(sizes**2, axis=1)


def _correlation(x: Floats, y: Floats, weights: Floats) -> Floats:
    """Returns Pearson's correlation of x and y, each (c,) or (b, c)."""
    x, y = _standardized(x, weights), _standardized(y, weights)
    xy, xx, yy = (np.sum(weights * product, axis=1) for product in (x * y, x * x, y * y))
    correlation: Floats = np.clip(xy / np.sqrt(xx * yy), -1, 1)
    return correlation


def _standardized(values: Floats, weights: Floats) -> Floats:
    """Returns values with a mean of 0 in each row, and no larger than 1: the squares of tiny ones would underflow."""
    centred: Floats = values - np.sum(weights * values, axis=1, keepdims=True) / weights.sum(axis=1, keepdims=True)
    centred /= np.max(np.abs(centred), axis=1, initial=0, keepdims=True)
    return centred


def _kendall_tau(pairs: Pairs, weights: Floats, untied: Floats) -> Floats:
    """Returns Kendall's tau-b, by the signs of all pairs of pairs; for many pairs, scipy's sorting is faster.

    float32 holds the sums of the signs exactly up to 16 million documents.
    """
    if len(pairs) > MAX_SIGNED_PAIRS:
        rows = zip(weights.astype(np.int64), untied, strict=True)
        return np.array([_sorted_kendall_tau(pairs, counts) if n_untied else np.nan for counts, n_untied in rows])
    signs = np.sign(pairs.truth[:, None] - pairs.truth) * np.sign(pairs.predicted[:, None] - pairs.predicted)
    tau: Floats = np.sum(weights * (weights.astype(np.float32) @ signs.astype(np.float32)), axis=1) / untied
    return tau


def _sorted_kendall_tau(pairs: Pairs, counts: Places) -> float:
    return float(kendalltau(np.repeat(pairs.truth, counts), np.repeat(pairs.predicted, counts)).statistic)


def _krippendorff_alpha(pairs: Pairs, weights: Floats) -> Floats:
    """Returns Krippendorff's ordinal alpha.

    The ordinal distance of two scores is the difference of their ranks, the middle one for ties, among the scores of
    both sides. The expected distance is therefore a variance of ranks, without a matrix of all distinct scores: the
    krippendorff library takes 18 s for the 500 scores of a regression head.
    """
    n = weights.sum(axis=1)
    levels, place = np.unique(np.concatenate([pairs.truth, pairs.predicted]), return_inverse=True)
    true_place, predicted_place = np.split(place, 2)
    pooled = _sums(weights, true_place, len(levels)) + _sums(weights, predicted_place, len(levels))
    ranks = np.cumsum(pooled, axis=1) - pooled / 2 - n[:, None]  # their mean is 0
    observed = np.sum(weights * (ranks[:, true_place] - ranks[:, predicted_place]) ** 2, axis=1) / n
    expected = 2 * np.sum(pooled * ranks**2, axis=1) / (2 * n - 1)
    alpha: Floats = 1 - observed / expected
    return alpha


def _label_measures(pairs: Pairs, weights: Floats, scale: Scale) -> Measures:
    k = len(scale.labels)
    cells = scale.nearest(pairs.truth) * k + scale.nearest(pairs.predicted)
    confusion = _sums(weights, cells, k * k).reshape(-1, k, k)
    true, predicted = confusion.sum(axis=2), confusion.sum(axis=1)
    n = true.sum(axis=1)
    hits = np.diagonal(confusion, axis1=1, axis2=2)
    n_hits = hits.sum(axis=1)
    recall, f1 = hits / true, 2 * hits / (true + predicted)
    by_chance = (true * predicted).sum(axis=1)
    by_pooled_chance = ((true + predicted) ** 2).sum(axis=1)
    distances = (np.arange(k)[:, None] - np.arange(k)) ** 2.0
    distance, expected = np.sum(confusion * distances, axis=(1, 2)), np.sum((true @ distances) * predicted, axis=1)
    measures = {
        "Fleiss": (4 * n * n_hits - by_pooled_chance) / (4 * n**2 - by_pooled_chance),  # for two raters (Fleiss, 1971)
        "Cohen": (n * n_hits - by_chance) / (n**2 - by_chance),
        "Cohen-Quadratic": 1 - n * distance / expected,
        "Acc": n_hits / n,
        "Macro-F1": np.nansum(f1, axis=1) / (true + predicted > 0).sum(axis=1),
        "Micro-F1": n_hits / n,
        "Weighted-F1": np.nansum(f1 * true, axis=1) / n,
    }
    for i, label in enumerate(scale.names):
        measures |= {f"CA-{label}": recall[:, i], f"F1-{label}": f1[:, i]}
    return measures


def _threshold_measures(pairs: Pairs, weights: Floats, thresholds: tuple[float, ...]) -> Measures:
    n = weights.sum(axis=1)
    measures: Measures = {}
    for threshold in thresholds:
        true, predicted = pairs.truth >= threshold, pairs.predicted >= threshold
        subsets = (true & predicted, true, predicted, true == predicted)
        n_both, n_true, n_predicted, n_equal = (weights @ subset.astype(np.float64) for subset in subsets)
        measures |= {
            f"TA-{threshold}": n_equal / n,
            f"Binary-Precision-{threshold}": n_both / n_predicted,
            f"Binary-Recall-{threshold}": n_both / n_true,
            f"Binary-F1-{threshold}": 2 * n_both / (n_true + n_predicted),
        }
    return measures


def _sums(weights: Floats, place: Places, n_places: int) -> Floats:
    """Returns the summed weight of the pairs at each place, float64 (b, n_places)."""
    n_pairs = len(place)
    is_at = csr_array((np.ones(n_pairs), (np.arange(n_pairs), place)), shape=(n_pairs, n_places))
    sums: Floats = weights @ is_at
    return sums


def _why_undefined(pairs: Pairs, options: MeasureOptions) -> dict[str, str]:
    """Returns the reason for each undefined measure, by name; there is at least one pair."""
    true, predicted, both = pairs.truth, pairs.predicted, np.concatenate([pairs.truth, pairs.predicted])
    true_places, all_places = options.scale.nearest(true), options.scale.nearest(both)
    reasons: dict[str, str] = {}
    for names, whose, scores in (
        (CORRELATIONS, "predicted", predicted),
        (CORRELATIONS, "true", true),
        (("Krippendorff",), "true and predicted", both),
        (KAPPAS, "true and predicted", np.array(options.scale.labels)[all_places]),
    ):
        if np.all(scores == scores[0]):
            reasons |= dict.fromkeys(names, f"all {whose} scores are {scores[0]:g}")
    for place, label in enumerate(options.scale.names):
        if place not in true_places:
            reasons[f"CA-{label}"] = f"no document has the true label {label}"
        if place not in all_places:
            reasons[f"F1-{label}"] = f"no document has the label {label} on either side"
    for threshold in options.thresholds:
        for name, whose, scores in (
            ("Precision", "predicted ", predicted),
            ("Recall", "true ", true),
            ("F1", "", both),
        ):
            if np.all(scores < threshold):
                reasons[f"Binary-{name}-{threshold}"] = f"no {whose}score reaches {threshold:g}"
    return reasons
