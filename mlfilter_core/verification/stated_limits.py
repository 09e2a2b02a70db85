"""The limits that a filter run stated, applied to documents again.

The run searched them among the bits of scores. Here scores are compared as numbers, and the limits of a corpus are
proved by counting: the limit of a percentile is the score of a document, and the documents above it are too few.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from operator import add
from typing import Any

import numpy as np

from mlfilter_core.config.filtering import SCORE_PREFIX, Bound
from mlfilter_core.corpus.records import Record
from mlfilter_core.filtering.ranks import ABOVE_ALL, LOWEST, TIE_BITS, score_of

LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class GroupLimit:
    """The limit of one score in one group: the lowest score that is kept, and the lowest tie-break at this score."""

    score: float
    tie_break: int

    @staticmethod
    def of(rank: int) -> "GroupLimit":
        if rank == ABOVE_ALL:
            return GroupLimit(np.inf, 0)
        return GroupLimit(-np.inf, 0) if rank == LOWEST else GroupLimit(score_of(rank), rank % (1 << TIE_BITS))

    def __str__(self) -> str:
        return f"{self.score:.6g}"

    def is_reached(self, score: float, tie_break: int) -> bool:
        return score > self.score or (score == self.score and tie_break >= self.tie_break)


@dataclass(frozen=True)
class StatedLimit:
    """The limits of one score.

    Attributes:
        name: Name of the score, with or without prefix.
        bound: What the job asked for.
        ranks: Lowest rank that is kept, by group.
        groups: The same as scores.
        shares: Token budget of each group; empty where each has that of the bound.
    """

    name: str
    bound: Bound
    ranks: Mapping[str, int]
    groups: Mapping[str, GroupLimit]
    shares: Mapping[str, int]

    def is_reached(self, score: float, group: str, tie_break: int) -> bool:
        limit = self.groups.get(group)
        return limit is not None and limit.is_reached(score, tie_break)


@dataclass(slots=True)
class LimitTally:
    """What the documents of one score and group amount to; adds up over files.

    Attributes:
        scored: Documents with the score.
        reached: Documents that reach the limit.
        above: Documents with a higher score than the limit.
        tokens: Tokens of the documents that reach the limit.
        next_tokens: Tokens of the best documents that do not reach it.
        sum_of_scores: Sum of the scores, in the order of the documents.
    """

    scored: int = 0
    reached: int = 0
    above: int = 0
    tokens: int = 0
    next_tokens: int = 0
    sum_of_scores: float = 0.0

    def counts(self) -> tuple[int, int, int, int, int]:
        """Returns the attributes that are counts."""
        return self.scored, self.reached, self.above, self.tokens, self.next_tokens

    def __add__(self, other: "LimitTally") -> "LimitTally":
        return LimitTally(*map(add, self.counts(), other.counts()))


Tallies = dict[tuple[str, str], LimitTally]  # by score and group


@dataclass
class StatedLimits:
    """The limits of a selection, and what the documents so far amount to.

    Attributes:
        limits: Limits of each score.
        n_needed: Number of limits that a document must reach.
        tallies: By score and group.
        reached: Documents that reach the limit of each score, by its name.
        without_score: Documents without one of the scores.
    """

    limits: Sequence[StatedLimit]
    n_needed: int
    tallies: Tallies = field(default_factory=dict)
    reached: Counter[str] = field(default_factory=Counter)
    without_score: int = 0

    @staticmethod
    def of(request: Mapping[str, Any]) -> "StatedLimits":
        """Returns the limits that the provenance of a filtered file states."""
        limits = []
        shares = request.get("shares", [{}] * len(request["keep"]))
        for asked, ranks, of_groups in zip(request["keep"], request["cuts"], shares, strict=True):
            bound = Bound(**{name: value for name, value in asked.items() if name != "score"})
            groups = {group: GroupLimit.of(rank) for group, rank in ranks.items()}
            limits.append(StatedLimit(asked["score"], bound, ranks, groups, of_groups))
        return StatedLimits(limits, request["at_least"])

    @property
    def breaks_ties(self) -> bool:
        """Whether the order of documents with equal scores matters."""
        return any(limit.bound.best_tokens is not None for limit in self.limits)

    def are_reached(self, record: Record, group: str, tie_break: int, tokens: int) -> bool:
        """Returns whether a document reaches enough limits, and counts it."""
        scores = [_score(record, limit.name) for limit in self.limits]
        self.without_score += any(score is None for score in scores)
        n_reached = 0
        for limit, score in zip(self.limits, scores, strict=True):
            if score is not None and self._count(limit, score, group, tie_break, tokens):
                n_reached += 1
        return n_reached >= self.n_needed

    def score_sums(self, groups: Iterable[str]) -> dict[str, dict[str, list[float]]]:
        """Returns the number of documents with each score and the sum of their scores, by group and score."""
        tallies = {key: [tally.scored, tally.sum_of_scores] for key, tally in self.tallies.items()}
        return {
            group: {limit.name: tallies.get((limit.name, group), [0, 0.0]) for limit in self.limits} for group in groups
        }

    def _count(self, limit: StatedLimit, score: float, group: str, tie_break: int, tokens: int) -> bool:
        tally = self.tallies.setdefault((limit.name, group), LimitTally())
        is_reached = limit.is_reached(score, group, tie_break)
        tally.scored += 1
        tally.sum_of_scores += score
        tally.reached += is_reached
        tally.above += score > limit.groups[group].score if group in limit.groups else 0
        tally.tokens += tokens if is_reached else 0
        if limit.bound.best_tokens is not None and group in limit.groups:
            is_next = GroupLimit.of(limit.ranks[group] - 1) == GroupLimit(score, tie_break)
            tally.next_tokens += tokens if is_next else 0
        self.reached[limit.name] += is_reached
        return is_reached


def why_wrong(bound: Bound, share: int | None, stated: GroupLimit, tally: LimitTally) -> str | None:
    """Returns why the limit of a group is not the one of a corpus; None if it is.

    Args:
        bound: What the job asked for.
        share: Token budget of the group; None where it is that of the bound.
        stated: The limit.
        tally: Sum over the documents of this group in all files of the corpus.
    """
    if bound.threshold is not None:
        return None if stated.score == float(np.float32(bound.threshold)) else "another score was asked for"
    if bound.best_tokens is not None:
        budget = bound.best_tokens if share is None else share
        is_full = tally.tokens + tally.next_tokens > budget or tally.reached == tally.scored
        if tally.tokens <= budget and (is_full if budget else not tally.reached):
            return None
        return f"{tally.tokens:,} tokens reach it, and the next best document has {tally.next_tokens:,}"
    percentile = Fraction(str(bound.percentile_or_default))
    n_kept = tally.scored - tally.scored * percentile // 100
    if not tally.scored or tally.above < n_kept <= tally.reached:
        return None
    return f"of {tally.scored:,} documents, {tally.above:,} are above it and {tally.reached:,} reach it"


def _score(record: Record, name: str) -> float | None:
    """Returns a score in the precision of limits; None where a document has no finite one."""
    value = record.get(name, record.get(f"{SCORE_PREFIX}{name}"))
    is_number = isinstance(value, int | float) and abs(value) <= LARGEST
    return float(np.float32(value)) if is_number else None
