"""Histograms that add up over files.

The width of bins is a power of two, and they begin at multiples of their width. So every bin lies in one bin of twice
its width, and the sum of two histograms with any bins is the histogram of all values.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

# The error of a quantile is below a hundredth of the range. Limits of 256, 512 or 8,192 tokens fit easily.
MAX_BINS = 320
# Exponent of the narrowest bins of real numbers: a billionth is finer than any difference of scores that matters.
FINEST_EXPONENT = -30
WHOLE_NUMBERS = 0  # exponent of the narrowest bins of counts
# Bins are numbered in 64 bits.
MAX_NUMBER_BITS = 50


@dataclass(frozen=True)
class Histogram:
    """Counts of values.

    Attributes:
        exponent: Bins are `2.0**exponent` wide.
        first: Number of the first bin; bin i holds the values from `i * width` to below `(i + 1) * width`.
        counts: int64 (n_bins,); the first and the last are not 0. Empty where there are no values.
    """

    exponent: int = FINEST_EXPONENT
    first: int = 0
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    @property
    def n(self) -> int:
        """Number of values."""
        return int(self.counts.sum())

    @property
    def width(self) -> float:
        """Width of a bin."""
        return 2.0**self.exponent

    def edges(self) -> NDArray[np.float64]:
        """Returns float64 (n_bins + 1,): the starts of the bins, and the end of the last bin."""
        return np.asarray((self.first + np.arange(len(self.counts) + 1)) * self.width, np.float64)

    def quantile(self, share: float) -> float:
        """Returns the value below which a share of the values lies, exact to a bin width; NaN without values."""
        if not len(self.counts):
            return math.nan
        below = np.concatenate([[0], np.cumsum(self.counts)])
        return float(np.interp(share * below[-1], below, self.edges()))

    def coarser(self, n_bins: int) -> "Histogram":
        """Returns the histogram with at most `n_bins` bins."""
        return _widened(self, _doublings(self.first, self.first + len(self.counts) - 1, n_bins))

    def __add__(self, other: "Histogram") -> "Histogram":
        if not len(self.counts) or not len(other.counts):
            return self if len(self.counts) else other
        exponent = max(self.exponent, other.exponent)
        parts = [_widened(part, exponent - part.exponent) for part in (self, other)]
        first = min(part.first for part in parts)
        last = max(part.first + len(part.counts) - 1 for part in parts)
        doublings = _doublings(first, last, MAX_BINS)
        parts = [_widened(part, doublings) for part in parts]
        first, last = first >> doublings, last >> doublings
        counts = np.zeros(last - first + 1, np.int64)
        for part in parts:
            counts[part.first - first :][: len(part.counts)] += part.counts
        return Histogram(exponent + doublings, first, counts)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Histogram)
            and (self.exponent, self.first) == (other.exponent, other.first)
            and np.array_equal(self.counts, other.counts)
        )

    __hash__ = None  # type: ignore[assignment]  # contains an array


def histogram(values: NDArray[Any], finest_exponent: int = FINEST_EXPONENT) -> Histogram:
    """Returns the histogram of finite numbers.

    Args:
        values: (n,), of any numeric dtype.
        finest_exponent: Exponent of the narrowest bins; `WHOLE_NUMBERS` for whole numbers.
    """
    if not len(values):
        return Histogram(finest_exponent)
    values = values.astype(np.float64, copy=False)
    low, high = float(values.min()), float(values.max())
    # The smallest exponent that meets all conditions. Each condition grows with the range, so that a sum has the same
    # bins as the histogram of all values.
    exponent = max(finest_exponent, math.frexp(max(abs(low), abs(high)))[1] - MAX_NUMBER_BITS)
    if high > low:
        exponent = max(exponent, math.ceil(math.log2((high - low) / MAX_BINS)))
    while math.floor(high / 2.0**exponent) - math.floor(low / 2.0**exponent) >= MAX_BINS:
        exponent += 1
    numbers = np.floor(values / 2.0**exponent).astype(np.int64)
    first = int(numbers.min())
    return Histogram(exponent, first, np.bincount(numbers - first).astype(np.int64))


def read_histogram(written: Mapping[str, Any]) -> Histogram:
    """Returns a histogram from its JSON object.

    Raises:
        ValueError, KeyError, TypeError: It is not a histogram.
    """
    counts = np.asarray(written["counts"], np.int64)
    if counts.ndim != 1 or len(counts) > MAX_BINS or (counts < 0).any():
        raise ValueError(f"the counts of a histogram are not a list of at most {MAX_BINS} numbers")
    exponent, first = int(written["exponent"]), int(written["first"])
    if not -1100 < exponent < 1000 or abs(first) >= 2 ** (MAX_NUMBER_BITS + 1):
        raise ValueError(f"no histogram has bins of 2**{exponent} from number {first} on")
    return Histogram(exponent, first, counts)


def write_histogram(values: Histogram) -> dict[str, Any]:
    """Returns a histogram as a JSON object: `{"exponent": 0, "first": 12, "counts": [1, 0, 7]}`."""
    return {"exponent": values.exponent, "first": values.first, "counts": values.counts.tolist()}


def total(histograms: Iterable[Histogram]) -> Histogram:
    """Returns the histogram of the values of all histograms."""
    return reduce(Histogram.__add__, histograms, Histogram())


def _doublings(first: int, last: int, n_bins: int) -> int:
    """Returns how often to double the width of bins `first` to `last` until there are at most `n_bins`."""
    doublings = 0
    while (last >> doublings) - (first >> doublings) >= n_bins:
        doublings += 1
    return doublings


def _widened(values: Histogram, doublings: int) -> Histogram:
    if not doublings or not len(values.counts):
        return values
    numbers = (values.first + np.arange(len(values.counts), dtype=np.int64)) >> doublings
    first = int(numbers[0])
    counts = np.bincount(numbers - first, values.counts).astype(np.int64)  # exact below 2**53
    return Histogram(values.exponent + doublings, first, counts)
