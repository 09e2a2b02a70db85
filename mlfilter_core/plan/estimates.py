"""Totals over all files, and quotients of totals, with confidence intervals, estimated from a sample of their lines.

The estimators are those of survey sampling (Cochran, Sampling Techniques, 3rd edition): a ratio estimator over blocks
drawn without replacement (chapter 6) and, for compressed files, two-stage sampling (chapter 11). A sample of
everything gives the exact total and an interval of width 0.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mlfilter_core.plan.blocks import Block, BlockSample, Prefix
from mlfilter_core.wording import rough_number

CONFIDENCE = 0.95
METHOD = (
    "95 % interval of a ratio estimator over the bytes of blocks drawn without replacement; the beginning of a "
    "compressed file stands for all of it"
)


@dataclass(frozen=True)
class Estimate:
    """A number with a 95 % confidence interval.

    Attributes:
        value: The point estimate.
        low: Lower end of the interval; equal to `high` where the number is known.
        high: Upper end of the interval.
    """

    value: float
    low: float
    high: float

    @classmethod
    def exact(cls, value: float) -> "Estimate":
        return cls(value, value, value)

    @property
    def is_exact(self) -> bool:
        return self.low == self.high

    def times(self, factor: float) -> "Estimate":
        """Returns the product with a factor of at least 0."""
        return Estimate(self.value * factor, self.low * factor, self.high * factor)

    def plus(self, summand: float) -> "Estimate":
        return Estimate(self.value + summand, self.low + summand, self.high + summand)

    def words(self, say: Callable[[float], str] = rough_number) -> str:
        """Returns `1,200` where the number is known, else `about 1,200 (1,100 to 1,300)`.

        Args:
            say: Returns one number as text.
        """
        if self.is_exact or say(self.low) == say(self.high):
            return say(self.value)
        return f"about {say(self.value)} ({say(self.low)} to {say(self.high)})"

    def to_json(self) -> dict[str, float]:
        return {"value": self.value, "low": self.low, "high": self.high}


@dataclass(frozen=True)
class _Total:
    """An estimated total, its variance, and the degrees of freedom of that variance."""

    value: float
    variance: float
    degrees_of_freedom: int


def estimate_total(sample: BlockSample, count: Callable[[Block], float]) -> Estimate:
    """Returns a total over all files.

    Args:
        sample: Sample of the files.
        count: Returns the count of one block, at least 0.
    """
    totals = [_plain_total(sample, count), _compressed_total(sample, count)]
    value = float(sum(total.value for total in totals))
    variance = sum(total.variance for total in totals)
    if not variance:
        return Estimate.exact(value)
    half = _t(sum(total.degrees_of_freedom for total in totals if total.variance)) * math.sqrt(variance)
    counted = sum(count(block) for block in sample.all_blocks)
    return Estimate(value, max(value - half, float(counted)), value + half)


def estimate_quotient(
    sample: BlockSample, count: Callable[[Block], float], other: Callable[[Block], float]
) -> Estimate:
    """Returns the quotient of two totals over all files, by its linear part (Cochran, chapters 6 and 11).

    Args:
        sample: Sample of the files.
        count: Returns the count of one block, at least 0.
        other: Returns the count to divide by; some block has one above 0.
    """
    divisor, total = estimate_total(sample, other).value, estimate_total(sample, count)
    quotient = total.value / divisor
    if len(sample.all_blocks) == 1:  # its residual is 0, whatever the others have
        return total.times(1 / divisor)
    residuals = estimate_total(sample, lambda block: count(block) - quotient * other(block))  # their total is 0
    half = (residuals.high - residuals.value) / divisor
    return Estimate(quotient, max(0.0, quotient - half), quotient + half)


def estimate_ratio(counts: Sequence[float], sizes: Sequence[float]) -> Estimate:
    """Returns the ratio of two totals, from a few units of very many (Cochran, chapter 6)."""
    ratio = sum(counts) / sum(sizes)
    n = len(counts)
    if n < 2:
        return Estimate.exact(ratio)
    half = _t(n - 1) * math.sqrt(_variance(counts, sizes) * n) / sum(sizes)
    return Estimate(ratio, max(0.0, ratio - half), ratio + half)


def _plain_total(sample: BlockSample, count: Callable[[Block], float]) -> _Total:
    sizes = [block.n_bytes for block in sample.blocks]
    return _ratio_total([count(block) for block in sample.blocks], sizes, sample.n_blocks, sample.plain_bytes)


def _compressed_total(sample: BlockSample, count: Callable[[Block], float]) -> _Total:
    """Estimates each file that was drawn from its beginning, then all files from those."""
    own = [_prefix_total(prefix, count) for prefix in sample.prefixes]
    if not own:
        return _Total(0.0, 0.0, 0)
    n, n_all = len(own), sample.n_compressed
    sizes = [prefix.n_bytes for prefix in sample.prefixes]
    between = _ratio_total([total.value for total in own], sizes, n_all, sample.compressed_bytes)
    within = n_all / n * sum(total.variance for total in own)
    freedom = n - 1 + sum(total.degrees_of_freedom for total in own)
    return _Total(between.value, between.variance + within, freedom)


def _prefix_total(prefix: Prefix, count: Callable[[Block], float]) -> _Total:
    counts = [count(block) for block in prefix.blocks]
    if prefix.is_whole or not counts:
        return _Total(sum(counts), 0.0, 0)
    sizes = [block.n_bytes for block in prefix.blocks]
    return _ratio_total(counts, sizes, prefix.n_bytes * len(sizes) / sum(sizes), prefix.n_bytes)


def _ratio_total(counts: Sequence[float], sizes: Sequence[float], n_all: float, all_bytes: float) -> _Total:
    """Estimates the total over `n_all` units of `all_bytes` from the counts and sizes of some of them."""
    n = len(counts)
    if n >= n_all or not n:
        return _Total(sum(counts), 0.0, 0)
    total = sum(counts) / sum(sizes) * all_bytes
    if n == 1:  # one unit does not show how much units differ: the error may be as large as the total
        return _Total(total, total**2, 0)
    return _Total(total, n_all**2 * (1 - n / n_all) * _variance(counts, sizes) / n, n - 1)


def _variance(counts: Sequence[float], sizes: Sequence[float]) -> float:
    """Returns the variance of the residuals of a ratio estimator; two units at least."""
    ratio = sum(counts) / sum(sizes)
    residuals = (count - ratio * size for count, size in zip(counts, sizes, strict=True))
    return sum(residual**2 for residual in residuals) / (len(counts) - 1)


def _t(degrees_of_freedom: int) -> float:
    """Returns the quantile of Student's t distribution for the interval."""
    from scipy.stats import t

    return float(t.ppf((1 + CONFIDENCE) / 2, max(1, degrees_of_freedom)))
