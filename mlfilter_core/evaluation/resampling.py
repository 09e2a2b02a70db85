"""The measures of `agreement` over many resamples of the documents at once, for their confidence intervals.

The libraries that compute the measures themselves would take hours for a thousand resamples of each annotator in each
language. Here a resample is a row of weights, and a measure a few sums over all rows. Of the documents as they are,
both give the same, which the tests hold them to.

Knows nothing about files.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.stats import kendalltau

from mlfilter_core.evaluation.scale import Scale

Floats = NDArray[np.float64]
Places = NDArray[np.int64]
Measures = dict[str, Floats]

PERCENTILES = (2.5, 97.5)
MAX_SIGNED_PAIRS = 2000  # measured: 0.04 ms a resample for 500 pairs and 0.5 ms for 2,000; scipy 0.4 and 1.3 ms
BLOCK_ELEMENTS = 1 << 22  # of an array at a time: 32 MiB, and there are about ten of them


@dataclass(frozen=True)
class Interval:
    """A percentile interval of 95 %.

    Attributes:
        low: None where the measure is undefined in all resamples.
        high: The same.
        undefined: Resamples in which it is, and which are left out: those in which all documents have one score, say.
    """

    low: float | None
    high: float | None
    undefined: int


class Pairs:
    """The distinct pairs of a true and a predicted score; of labels there are few, however many the documents.

    Attributes:
        truth: float64 (c,).
        predicted: float64 (c,).
        place: int64 (n,), the pair of each row that was given.
        counts: float64 (c,), in how many rows it is.
    """

    def __init__(self, truth: Floats, predicted: Floats) -> None:
        pairs, place, counts = np.unique(
            np.stack([truth, predicted], axis=1), axis=0, return_inverse=True, return_counts=True
        )
        self.truth, self.predicted = pairs.T
        self.place = place
        self.counts = counts.astype(np.float64)

    def __len__(self) -> int:
        return len(self.truth)


def bootstrap(
    pairs: Pairs, documents: Places, scale: Scale, thresholds: Sequence[float], n_resamples: int, seed: int
) -> dict[str, Interval]:
    """Returns the interval of each measure, from resampling documents with replacement.

    Args:
        pairs: Of n rows.
        documents: int64 (n,), the document that each row is of, from 0 without gaps. One with several rows, of several
            languages, is drawn with all of them: they are not independent.
        scale: The labels.
        thresholds: Of the binary measures.
        n_resamples: How many; at least one.
        seed: The same gives the same intervals.
    """
    n_documents = int(documents.max()) + 1
    pairs_of_documents = csr_array((np.ones(len(documents)), (documents, pairs.place)), shape=(n_documents, len(pairs)))
    rng = np.random.default_rng(seed)
    block = max(1, BLOCK_ELEMENTS // max(n_documents, len(pairs)))
    parts = []
    for start in range(0, n_resamples, block):
        n = min(block, n_resamples - start)
        drawn = rng.integers(n_documents, size=(n, n_documents)) + np.arange(n)[:, None] * n_documents
        times = np.bincount(drawn.ravel(), minlength=n * n_documents).reshape(n, n_documents)
        parts.append(weighted_measures(pairs, times @ pairs_of_documents, scale, thresholds))
    return {name: _interval(np.concatenate([part[name] for part in parts])) for name in parts[0]}


def weighted_measures(pairs: Pairs, weights: Floats, scale: Scale, thresholds: Sequence[float]) -> Measures:
    """Returns each measure of `agreement`, once for each row of weights; NaN where it is undefined.

    Args:
        pairs: c distinct ones.
        weights: float64 (b, c), how often each is there, as whole numbers; at least one of each row is not 0.
        scale: The labels.
        thresholds: Of the binary measures.
    """
    with np.errstate(divide="ignore", invalid="ignore"):  # 0 / 0 is how a measure is undefined
        return {
            **_label_measures(pairs, weights, scale),
            **_score_measures(pairs, weights),
            **_threshold_measures(pairs, weights, thresholds),
        }


def _label_measures(pairs: Pairs, weights: Floats, scale: Scale) -> Measures:
    k = len(scale.labels)
    cells = scale.nearest(pairs.truth) * k + scale.nearest(pairs.predicted)
    confusion = _sums(weights, cells, k * k).reshape(-1, k, k)
    true, predicted = confusion.sum(axis=2), confusion.sum(axis=1)
    n = true.sum(axis=1)
    hits = np.diagonal(confusion, axis1=1, axis2=2)
    n_hits = hits.sum(axis=1)
    f1 = 2 * hits / (true + predicted)
    by_chance = (true * predicted).sum(axis=1)
    by_pooled_chance = ((true + predicted) ** 2).sum(axis=1)
    distances = (np.arange(k)[:, None] - np.arange(k)) ** 2.0
    distance, expected = np.sum(confusion * distances, axis=(1, 2)), np.sum((true @ distances) * predicted, axis=1)
    return {
        "Fleiss": (4 * n * n_hits - by_pooled_chance) / (4 * n**2 - by_pooled_chance),
        "Cohen": (n * n_hits - by_chance) / (n**2 - by_chance),
        "Cohen-Quadratic": 1 - n * distance / expected,
        "Acc": n_hits / n,
        **_by_label("CA", scale, hits / true),
        "Macro-F1": np.nansum(f1, axis=1) / (true + predicted > 0).sum(axis=1),
        "Micro-F1": n_hits / n,
        "Weighted-F1": np.nansum(f1 * true, axis=1) / n,
        **_by_label("F1", scale, f1),
    }


def _by_label(name: str, scale: Scale, values: Floats) -> Measures:
    return {f"{name}-{label}": column for label, column in zip(scale.names, values.T, strict=True)}


def _score_measures(pairs: Pairs, weights: Floats) -> Measures:
    n = weights.sum(axis=1)
    true_ranks, true_ties = _ranks(pairs.truth, weights)
    predicted_ranks, predicted_ties = _ranks(pairs.predicted, weights)
    untied = np.sqrt((n**2 - true_ties) * (n**2 - predicted_ties))
    mean_rank = n[:, None] / 2
    true_means, predicted_means = weights @ pairs.truth / n, weights @ pairs.predicted / n
    pearson = _correlation(pairs.truth - true_means[:, None], pairs.predicted - predicted_means[:, None], weights)
    difference = np.abs(pairs.truth - pairs.predicted)
    return {
        "Spearman": _correlation(true_ranks - mean_rank, predicted_ranks - mean_rank, weights),
        "Kendall": _kendall_tau(pairs, weights, untied),
        "Krippendorff": krippendorff_alpha(pairs, weights),
        "Pearson": np.where(untied > 0, pearson, np.nan),  # of one score alone rounding may leave more than 0 / 0
        "MAE": weights @ difference / n,
        "MSE": weights @ difference**2 / n,
    }


def krippendorff_alpha(pairs: Pairs, weights: Floats) -> Floats:
    """Returns Krippendorff's alpha of ordinal scores, once for each row of weights; arguments as `weighted_measures`.

    The ordinal distance of two scores is the difference of their ranks, ties in the middle, among the scores of both
    sides. So the expected distance is a variance of ranks, and takes no square of all distinct scores by each other.
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


def _ranks(values: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Returns the rank of each pair, float64 (b, c), ties in the middle, and the sum of the squared sizes of ties."""
    levels, place = np.unique(values, return_inverse=True)
    sizes = _sums(weights, place, len(levels))
    return (np.cumsum(sizes, axis=1) - sizes / 2)[:, place], np.sum(sizes**2, axis=1)


def _correlation(x: Floats, y: Floats, weights: Floats) -> Floats:
    """Returns the correlation of what has the mean 0."""
    products = [np.sum(weights * left * right, axis=1) for left, right in ((x, y), (x, x), (y, y))]
    correlation: Floats = products[0] / np.sqrt(products[1] * products[2])
    return correlation


def _kendall_tau(pairs: Pairs, weights: Floats, untied: Floats) -> Floats:
    """Returns Kendall's tau-b.

    Of few distinct pairs, as a product of matrices with the sign of each two: whether they are concordant. float32
    holds its whole numbers exactly up to 16 million documents. Of many, scipy's sorting is faster.
    """
    if len(pairs) > MAX_SIGNED_PAIRS:
        rows = zip(weights.astype(np.int64), untied, strict=True)
        return np.array([_kendall_tau_of(pairs, row) if n_untied else np.nan for row, n_untied in rows])
    signs = np.sign(pairs.truth[:, None] - pairs.truth) * np.sign(pairs.predicted[:, None] - pairs.predicted)
    tau: Floats = np.sum(weights * (weights.astype(np.float32) @ signs.astype(np.float32)), axis=1) / untied
    return tau


def _kendall_tau_of(pairs: Pairs, counts: Places) -> float:
    truth, predicted = np.repeat(pairs.truth, counts), np.repeat(pairs.predicted, counts)
    return float(kendalltau(truth, predicted).statistic)


def _threshold_measures(pairs: Pairs, weights: Floats, thresholds: Sequence[float]) -> Measures:
    n = weights.sum(axis=1)
    measures: Measures = {}
    for threshold in thresholds:
        true, predicted = pairs.truth >= threshold, pairs.predicted >= threshold
        n_both, n_true, n_predicted = (
            weights @ part.astype(np.float64) for part in (true & predicted, true, predicted)
        )
        measures |= {
            f"TA-{threshold}": weights @ (true == predicted).astype(np.float64) / n,
            f"Binary-Precision-{threshold}": n_both / n_predicted,
            f"Binary-Recall-{threshold}": n_both / n_true,
            f"Binary-F1-{threshold}": 2 * n_both / (n_true + n_predicted),
        }
    return measures


def _sums(weights: Floats, place: Places, n_places: int) -> Floats:
    """Returns the weight of all pairs at each place, float64 (b, n_places)."""
    n_pairs = len(place)
    is_at = csr_array((np.ones(n_pairs), (np.arange(n_pairs), place)), shape=(n_pairs, n_places))
    sums: Floats = weights @ is_at
    return sums


def _interval(values: Floats) -> Interval:
    defined = values[~np.isnan(values)]
    low, high = np.percentile(defined, PERCENTILES).tolist() if len(defined) else (None, None)
    return Interval(low, high, len(values) - len(defined))
