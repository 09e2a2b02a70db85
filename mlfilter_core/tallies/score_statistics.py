"""Statistics of scores that add up over files.

Means and sums of products follow Chan, Golub and LeVeque (1979), "Updating Formulae and a Pairwise Algorithm for
Computing Sample Variances", and lose no digits where a mean is large compared to its spread.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlfilter_core.tallies.histogram import Histogram, histogram, read_histogram, write_histogram

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ScoreStatistics:
    """Statistics of k scores of the same documents.

    Attributes:
        names: Names of the scores.
        n: Number of documents.
        means: float64 (k,); 0 where there are no documents.
        products: float64 (k, k), sums of products of two scores' deviations from their means.
        minima: float64 (k,); infinity where there are no documents.
        maxima: float64 (k,); minus infinity.
        histograms: Histogram of each score.
    """

    names: tuple[str, ...]
    n: int
    means: Floats
    products: Floats
    minima: Floats
    maxima: Floats
    histograms: tuple[Histogram, ...]

    def deviations(self) -> Floats:
        """Returns float64 (k,), the standard deviation of each score."""
        return np.asarray(np.sqrt(np.diag(self.products) / max(self.n, 1)))

    def correlations(self) -> Floats:
        """Returns float64 (k, k), Pearson's; NaN where a score has one value only."""
        spread = np.sqrt(np.diag(self.products))
        # The spread of equal scores can be slightly above 0 by rounding.
        spread = np.where(self.maxima > self.minima, spread, np.nan)
        return np.asarray(np.clip(self.products / np.outer(spread, spread), -1, 1))

    def __add__(self, other: "ScoreStatistics") -> "ScoreStatistics":
        if self.names != other.names:
            raise ValueError(f"scores {self.names} and {other.names} do not add up")
        n = self.n + other.n
        apart = other.means - self.means
        share = other.n / n if n else 0.0
        return ScoreStatistics(
            self.names,
            n,
            self.means + apart * share,
            self.products + other.products + np.outer(apart, apart) * self.n * share,
            np.minimum(self.minima, other.minima),
            np.maximum(self.maxima, other.maxima),
            tuple(one + two for one, two in zip(self.histograms, other.histograms, strict=True)),
        )


def score_statistics(scores: Mapping[str, NDArray[np.float32]]) -> ScoreStatistics:
    """Returns the statistics of some documents.

    Args:
        scores: float32 (n,), finite, by name; the same n for all.
    """
    n = len(next(iter(scores.values()), ()))
    values = np.array(list(scores.values()), np.float64).reshape(len(scores), n)
    means = values.mean(axis=1) if n else np.zeros(len(scores))
    centred = values - means[:, None]
    return ScoreStatistics(
        tuple(scores),
        n,
        means,
        centred @ centred.T,
        values.min(axis=1, initial=np.inf),
        values.max(axis=1, initial=-np.inf),
        tuple(histogram(score) for score in values),
    )


def statistics_of_none(names: tuple[str, ...]) -> ScoreStatistics:
    """Returns the statistics of no documents; a sum with them is the other summand."""
    return score_statistics({name: np.zeros(0, np.float32) for name in names})


def write_score_statistics(statistics: ScoreStatistics) -> dict[str, Any]:
    """Returns statistics as a JSON object, with the product of each pair once."""
    is_empty = not statistics.n
    return {
        "names": list(statistics.names),
        "documents": statistics.n,
        "means": statistics.means.tolist(),
        "products": statistics.products[np.triu_indices(len(statistics.names))].tolist(),
        "minima": [] if is_empty else statistics.minima.tolist(),
        "maxima": [] if is_empty else statistics.maxima.tolist(),
        "histograms": [write_histogram(values) for values in statistics.histograms],
    }


def read_score_statistics(written: Mapping[str, Any]) -> ScoreStatistics:
    """Returns statistics from their JSON object.

    Raises:
        ValueError, KeyError, TypeError: It is not a valid object.
    """
    names, n = tuple(map(str, written["names"])), int(written["documents"])
    k = len(names)
    products = np.zeros((k, k))
    products[np.triu_indices(k)] = written["products"]
    products = np.triu(products) + np.triu(products, 1).T
    histograms = tuple(read_histogram(values) for values in written["histograms"])
    minima = np.array(written["minima"] if n else [np.inf] * k, np.float64)
    maxima = np.array(written["maxima"] if n else [-np.inf] * k, np.float64)
    means = np.array(written["means"], np.float64)
    if not (len(histograms) == len(means) == len(minima) == len(maxima) == k):
        raise ValueError(f"statistics of {k} scores have other numbers of values")
    return ScoreStatistics(names, n, means, products, minima, maxima, histograms)
