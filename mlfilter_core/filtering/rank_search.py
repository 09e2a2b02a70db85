"""The exact ranks at which percentiles and token budgets end, over a corpus that does not fit in memory.

A radix selection, 16 bits of the rank at a time: each pass over the surveys counts the documents or tokens in each of
65,536 ranges of ranks, and the next pass looks into the range that contains the threshold. So memory does not depend on
the number of documents, and the result is exact.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from mlfilter_core.config.filtering import Bound
from mlfilter_core.filtering.ranks import ABOVE_ALL, LOWEST, TIE_BITS, Ranks, ranks
from mlfilter_core.filtering.survey import Survey

Surveys = Callable[[], Iterable[Survey]]

LEVEL_BITS = 16
N_RANGES = 1 << LEVEL_BITS
SCORE_LEVELS, ALL_LEVELS = 2, 4  # of 16 bits each: the score has 32 bits, and so does the hash
MAX_COUNTERS = 1 << 27  # for searches that share a pass: 1 GiB


@dataclass
class RankSearch:
    """The search for the threshold of one score in each of n groups.

    Attributes:
        score: Name of the score.
        counts_tokens: Whether budgets are numbers of tokens; otherwise of documents.
        n_scored: int64 (n,), documents that have the score.
        left: int64 (n,), part of each budget that is left for the ranges of this level.
        level: Levels that are done.
        prefixes: uint64 (n,), leading bits of the rank at which the budget is exceeded, counted from the best document.
        fits: bool (n,), whether the budget is never exceeded.
        counts: int64 (n, N_RANGES), documents or tokens in each range of this level.
    """

    score: str
    counts_tokens: bool
    n_scored: NDArray[np.int64]
    left: NDArray[np.int64]
    level: int = 0
    prefixes: Ranks = field(init=False)
    fits: NDArray[np.bool_] = field(init=False)
    counts: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        self.prefixes = np.zeros(len(self.left), np.uint64)
        self.fits = np.zeros(len(self.left), np.bool_)

    @staticmethod
    def of(score: str, bound: Bound, n_scored: NDArray[np.int64]) -> "RankSearch":
        """Returns the search for a percentile or a token budget.

        Args:
            score: Name of the score.
            bound: The percentile or the budget.
            n_scored: int64 (n,), documents of each group that have the score.
        """
        if bound.best_tokens is not None:
            return RankSearch(score, True, n_scored, np.full(len(n_scored), bound.best_tokens, np.int64))
        # The decimal as it was written: in floats, 32.3 % of 1000 is 322.
        percentile = Fraction(str(bound.percentile_or_default))
        # One less than the documents to keep, so that the last of them exceeds the budget.
        left = [n - n * percentile // 100 - 1 for n in n_scored.tolist()]
        return RankSearch(score, False, n_scored, np.array(left, np.int64))

    @property
    def is_done(self) -> bool:
        return self.level == (ALL_LEVELS if self.counts_tokens else SCORE_LEVELS)

    def start_level(self) -> None:
        """Sets all counts to zero."""
        self.counts = np.zeros((len(self.left), N_RANGES), np.int64)

    def count(self, survey: Survey, rank: Ranks, group: NDArray[np.int64]) -> None:
        """Adds the documents of a file, or their tokens, to the counts.

        Args:
            survey: The survey of the file.
            rank: uint64 (n_documents,), rank of each document.
            group: int64 (n_documents,), index of its group among the n groups.
        """
        shift = np.uint64(64 - LEVEL_BITS * (self.level + 1))
        counted = rank > 0
        if self.level > 0:
            counted &= (rank >> (shift + np.uint64(LEVEL_BITS))) == self.prefixes[group]
        ranges = ((rank[counted] >> shift) & np.uint64(N_RANGES - 1)).astype(np.int64)
        ranges += group[counted] * N_RANGES
        np.add.at(self.counts.reshape(-1), ranges, survey.tokens[counted] if self.counts_tokens else np.int64(1))

    def end_level(self) -> None:
        """Narrows each group's search to the range in which its budget is exceeded."""
        for i, of_group in enumerate(self.counts):
            from_best = of_group[::-1].cumsum()
            place = int(np.searchsorted(from_best, self.left[i], side="right"))
            if self.level == 0:
                self.fits[i] = place == N_RANGES
            place = min(place, N_RANGES - 1)
            self.left[i] -= from_best[place - 1] if place > 0 else 0
            self.prefixes[i] = (int(self.prefixes[i]) << LEVEL_BITS) | (N_RANGES - 1 - place)
        self.level += 1
        del self.counts

    def lowest_kept(self) -> list[int]:
        """Returns the lowest rank that is kept in each group."""
        return [
            self._lowest_kept(*of_group)
            for of_group in zip(self.n_scored.tolist(), self.fits.tolist(), self.prefixes.tolist(), strict=True)
        ]

    def _lowest_kept(self, n_scored: int, fits: bool, prefix: int) -> int:
        if not n_scored:
            return ABOVE_ALL
        if fits:
            return LOWEST
        # A document that does not fit into a token budget is dropped; the score of a percentile is kept.
        return prefix + 1 if self.counts_tokens else prefix << TIE_BITS


def run_searches(
    searches: Sequence[RankSearch], groups: Sequence[str], surveys: Surveys, max_counters: int = MAX_COUNTERS
) -> None:
    """Completes searches; as many of them share a pass over the surveys as fit in memory.

    Args:
        searches: Over the same groups.
        groups: Names of the n groups.
        surveys: Returns the survey of each file, once for each pass.
        max_counters: Most counters of the searches that share a pass.
    """
    n_together = max(1, max_counters // (len(groups) * N_RANGES)) if groups else 1
    for first in range(0, len(searches), n_together):
        active = list(searches[first : first + n_together])
        while active:
            _run_level(active, groups, surveys)
            active = [search for search in active if not search.is_done]


def _run_level(searches: Sequence[RankSearch], groups: Sequence[str], surveys: Surveys) -> None:
    index_of = {group: i for i, group in enumerate(groups)}
    for search in searches:
        search.start_level()
    for survey in surveys():
        group = np.array([index_of[name] for name in survey.groups], np.int64)[survey.group]
        known: dict[tuple[str, bool], Ranks] = {}
        for search in searches:
            key = (search.score, search.counts_tokens)
            if key not in known:
                known[key] = ranks(survey, search.score, break_ties=search.counts_tokens)
            search.count(survey, known[key], group)
    for search in searches:
        search.end_level()
