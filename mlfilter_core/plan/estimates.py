"""A total over all files, with its interval, from counts over random pieces of them.

The estimators are those of survey sampling (Cochran, Sampling Techniques, 3rd edition): a ratio to the bytes over
pieces drawn without replacement (chapter 6), and over compressed files one of two stages (chapter 11), as their
beginnings stand for them. All of a corpus gives its total, and an interval of no width.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mlfilter_core.plan.blocks import Block, BlockSample, FileHead

CONFIDENCE = 0.95
HOW = (
    "95 % interval of a ratio estimator over the bytes of pieces drawn without replacement; of a compressed file, its "
    "beginning stands for all of it"
)


@dataclass(frozen=True)
class Estimate:
    """A number that is known or estimated.

    Attributes:
        value: The likeliest.
        low: Lower end of its 95 % interval.
        high: Upper end.
    """

    value: float
    low: float
    high: float

    @property
    def is_exact(self) -> bool:
        return self.low == self.high

    def times(self, factor: float) -> "Estimate":
        """Returns so many times as much; the factor is at least 0."""
        return Estimate(self.value * factor, self.low * factor, self.high * factor)

    def to_json(self) -> dict[str, float]:
        return {"value": self.value, "low": self.low, "high": self.high}


@dataclass(frozen=True)
class _Part:
    """A total over one kind of files: its estimate, the variance of that, and how many pieces that rests on."""

    total: float
    variance: float
    degrees_of_freedom: int


def estimate_total(sample: BlockSample, count: Callable[[Block], float]) -> Estimate:
    """Returns a total over all files.

    Args:
        sample: Of the files.
        count: Returns what is counted of one piece; at least 0.
    """
    parts = [_plain_total(sample, count), _compressed_total(sample, count)]
    total = sum(part.total for part in parts)
    variance = sum(part.variance for part in parts)
    if not variance:
        return Estimate(total, total, total)
    from scipy.stats import t

    freedom = max(1, sum(part.degrees_of_freedom for part in parts if part.variance))
    half = float(t.ppf((1 + CONFIDENCE) / 2, freedom)) * math.sqrt(variance)
    counted = sum(count(block) for block in sample.all_blocks)
    return Estimate(total, max(total - half, float(counted)), total + half)


def _plain_total(sample: BlockSample, count: Callable[[Block], float]) -> _Part:
    blocks, n_all = sample.blocks, sample.n_blocks
    counts = [count(block) for block in blocks]
    if len(blocks) == n_all:
        return _Part(sum(counts), 0.0, 0)
    if not blocks:
        return _Part(0.0, 0.0, 0)
    ratio = sum(counts) / sum(block.n_bytes for block in blocks)
    spread = _spread([n - ratio * block.n_bytes for n, block in zip(counts, blocks, strict=True)])
    variance = n_all**2 * (1 - len(blocks) / n_all) * spread / len(blocks)
    return _Part(ratio * sample.plain_bytes, variance, len(blocks) - 1)


def _compressed_total(sample: BlockSample, count: Callable[[Block], float]) -> _Part:
    """Over the files that were drawn, then over the pieces of each that were read."""
    heads, n_all = [head for head in sample.heads if head.blocks], sample.n_compressed
    n_empty = len(sample.heads) - len(heads)
    if not heads:
        return _Part(0.0, 0.0, 0)
    own = [_head_total(head, count) for head in heads]
    totals = [part.total for part in own] + [0.0] * n_empty
    sizes = [head.n_bytes for head in heads] + [head.n_bytes for head in sample.heads if not head.blocks]
    ratio = sum(totals) / sum(sizes)
    n = len(totals)
    between = 0.0
    if n < n_all:
        # Of one file there is no telling how much files differ: as much as it holds, say.
        spread = _spread([total - ratio * size for total, size in zip(totals, sizes, strict=True)])
        spread = spread if n > 1 else totals[0] ** 2
        between = n_all**2 * (1 - n / n_all) * spread / n
    within = n_all / n * sum(part.variance for part in own)
    total = sum(totals) if n == n_all else ratio * sample.compressed_bytes
    return _Part(total, between + within, n - 1 + sum(part.degrees_of_freedom for part in own))


def _head_total(head: FileHead, count: Callable[[Block], float]) -> _Part:
    counts = [count(block) for block in head.blocks]
    if head.is_whole:
        return _Part(sum(counts), 0.0, 0)
    n_read = sum(block.n_bytes for block in head.blocks)
    ratio = sum(counts) / n_read
    total = ratio * head.n_bytes
    n = len(counts)
    if n < 2:  # no telling how much pieces differ: as much as one holds, say
        return _Part(total, total**2, 0)
    n_all = head.n_bytes * n / n_read
    spread = _spread([m - ratio * block.n_bytes for m, block in zip(counts, head.blocks, strict=True)])
    return _Part(total, n_all**2 * max(0.0, 1 - n / n_all) * spread / n, n - 1)


def _spread(residuals: Sequence[float]) -> float:
    return sum(residual**2 for residual in residuals) / max(len(residuals) - 1, 1)
