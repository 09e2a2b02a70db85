"""The exact ranks at which percentiles and token budgets end, over a corpus that does not fit in memory.

A radix selection, 16 bits of the rank at a time: the first pass over the surveys counts the documents or tokens in each
of 65,536 ranges of ranks, and each further pass does so within the range that contains the limit. So memory does not
depend on the number of documents, and the result is exact. With many groups, it is 8 bits at a time, in twice as many
passes: a group then has 256 counters.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache, partial
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlfilter_core.config.filtering import Bound
from mlfilter_core.errors import ConfigError
from mlfilter_core.filtering.ranks import ABOVE_ALL, LOWEST, TIE_BITS, Ranks, lowest_rank_of, score_keys, tie_breaks
from mlfilter_core.filtering.survey import MAX_GROUPS, UNKNOWN, Survey

Surveys = Callable[[], Iterable[Survey]]
Keys = NDArray[np.uint32]
Codes = NDArray[np.int64]
Counts = NDArray[np.int64]  # (n_groups, n_ranges), documents or tokens; n_ranges is a power of two

SCORE_BITS, RANK_BITS = 32, 64  # the score, and with its hash the rank
FEW_BITS, MANY_BITS = 16, 8  # of a pass, with few groups and with many; both divide 32
MAX_FEW_GROUPS = 1024  # counters of half a MB each: documents and tokens of a score fill MAX_COUNTERS
MAX_COUNTERS = 1 << 27  # for searches that share a pass: 1 GiB
BLOCK_ROWS = 1 << 16  # documents counted at a time: their arrays stay in the cache, which takes a third of the time
BLOCK_COUNTERS = 1 << 16  # summed up at a time, likewise


@dataclass
class RankSearch:
    """The search for the limit of one score in each of n groups. For a threshold, only the documents are counted.

    Attributes:
        score: Name of the score.
        bound: Percentile, threshold or token budget.
        shares: Token budget of each group by its name, 0 for others; None where each has that of the bound.
        n_found: Leading bits of the ranks that are found.
        n_scored: int64 (n,), documents that have the score.
        budgets: int64 (n,), documents or tokens to keep; for documents, one less.
        left: int64 (n,), documents or tokens of each budget that are left for the ranges of this pass.
        prefixes: uint64 (n,), leading bits of the rank at which the budget is exceeded, counted from the best document.
        totals: int64 (n,), documents or tokens of the documents that have the score.
    """

    score: str
    bound: Bound
    shares: Mapping[str, int] | None = None
    n_found: int = 0
    n_scored: NDArray[np.int64] = field(init=False)
    budgets: NDArray[np.int64] = field(init=False)
    left: NDArray[np.int64] = field(init=False)
    prefixes: Ranks = field(init=False)
    totals: NDArray[np.int64] = field(init=False)

    @property
    def counts_tokens(self) -> bool:
        """Whether the budgets are numbers of tokens; otherwise of documents."""
        return self.bound.best_tokens is not None

    @property
    def is_done(self) -> bool:
        return self.bound.threshold is not None or self.n_found == (RANK_BITS if self.counts_tokens else SCORE_BITS)

    def begin(self, groups: Iterable[str], n_scored: NDArray[np.int64]) -> None:
        """Sets the budgets.

        Args:
            groups: Names of the groups.
            n_scored: int64 (n,), documents of each group that have the score.
        """
        self.n_scored = n_scored
        self.prefixes = np.zeros(len(n_scored), np.uint64)
        self.totals = np.zeros(len(n_scored), np.int64)
        self.budgets = np.array(self._budgets(groups), np.int64)
        self.left = self.budgets.copy()

    def _budgets(self, groups: Iterable[str]) -> list[int]:
        if self.bound.best_tokens is not None:
            of_each = self.bound.best_tokens
            return [of_each if self.shares is None else self.shares.get(group, 0) for group in groups]
        # The decimal as it was written: in floats, 32.3 % of 1000 is 322.
        dropped, of = (Fraction(str(self.bound.percentile_or_default)) / 100).as_integer_ratio()
        # One less than the documents to keep, so that the last of them exceeds the budget.
        return [n - n * dropped // of - 1 for n in self.n_scored.tolist()]

    def narrow(self, counts: Counts) -> None:
        """Narrows each group's search to the range of this pass in which its budget is exceeded."""
        n_ranges = counts.shape[1]
        n_bits = n_ranges.bit_length() - 1
        n_together = max(1, BLOCK_COUNTERS // n_ranges)
        for first in range(0, len(counts), n_together):
            own = slice(first, first + n_together)
            from_best = counts[own, ::-1].cumsum(axis=1)
            left = self.left[own].tolist()
            places = np.array([row.searchsorted(n, side="right") for row, n in zip(from_best, left, strict=True)])
            if self.n_found == 0:
                self.totals[own] = from_best[:, -1]
            places = np.minimum(places, n_ranges - 1)
            better = np.take_along_axis(from_best, places[:, np.newaxis] - 1, axis=1)[:, 0]
            self.left[own] -= np.where(places > 0, better, 0)
            self.prefixes[own] = (self.prefixes[own] << np.uint64(n_bits)) | (n_ranges - 1 - places).astype(np.uint64)
        self.n_found += n_bits

    def ranges(self, survey: Survey, keys: Keys, codes: Codes, n_bits: int) -> tuple[NDArray[np.int64], Ranks]:
        """Returns the ranges of this pass that documents of a file lie in, where it is not the first pass.

        Args:
            survey: The survey of the file.
            keys: Upper bits of the ranks of its n documents, uint32 (n,).
            codes: Indices of its groups among those of the search.
            n_bits: Bits of this pass.

        Returns:
            The rows of documents whose rank begins with the bits found so far, and their ranges.
        """
        n_found, found = self.n_found, self.prefixes[codes]
        n_of_key = min(n_found, SCORE_BITS)
        of_key = (found >> np.uint64(n_found - n_of_key)).astype(np.uint32)
        is_alike = keys >> np.uint32(SCORE_BITS - n_of_key) == _of_documents(of_key, survey.group)
        rows = np.flatnonzero(is_alike)
        rank = keys[rows].astype(np.uint64) << np.uint64(TIE_BITS)
        if n_found >= SCORE_BITS:
            # The hashes of all documents would take most of the time.
            rank |= tie_breaks(survey.stem, survey.first_row + rows)
            is_alike = rank >> np.uint64(RANK_BITS - n_found) == _of_documents(found, survey.group[rows])
            rows, rank = rows[is_alike], rank[is_alike]
        return rows, (rank >> np.uint64(RANK_BITS - n_found - n_bits)) & np.uint64((1 << n_bits) - 1)

    def lowest_kept(self) -> list[int]:
        """Returns the lowest rank that is kept in each group."""
        if self.bound.threshold is not None:
            return [lowest_rank_of(self.bound.threshold)] * len(self.n_scored)
        # A document that does not fit into a token budget is dropped; the score of a percentile is kept.
        of_limit = self.prefixes + np.uint64(1) if self.counts_tokens else self.prefixes << np.uint64(TIE_BITS)
        of_scored = np.where(self.totals <= self.budgets, np.uint64(LOWEST), of_limit)
        keeps = (self.n_scored > 0) & ((self.budgets > 0) | (not self.counts_tokens))
        lowest_kept: list[int] = np.where(keeps, of_scored, np.uint64(ABOVE_ALL)).tolist()
        return lowest_kept


def run_searches(searches: Sequence[RankSearch], surveys: Surveys, max_counters: int = MAX_COUNTERS) -> list[str]:
    """Completes searches; as many of them share a pass over the surveys as fit in memory.

    Args:
        searches: New searches.
        surveys: Returns the survey of each file, in any order; called once for each pass.
        max_counters: Most counters of the searches that share a pass.

    Returns:
        The names of the groups.

    Raises:
        ConfigError: No document has a score, there are too many groups, or token counts are needed and not known.
    """
    groups: dict[str, int] = {}
    n_begun = 0
    while n_begun < len(searches):
        begun = _run_first_pass(searches[n_begun:], groups, surveys, max_counters)
        n_begun += len(begun)
        unfinished = [search for search in begun if not search.is_done]
        n_together = max(1, max_counters // (len(groups) << _bits_of_a_pass(groups)))
        for first in range(0, len(unfinished), n_together):
            active = unfinished[first : first + n_together]
            while active:
                _run_pass(active, groups, surveys)
                active = [search for search in active if not search.is_done]
    return list(groups)


def _run_first_pass(
    searches: Sequence[RankSearch], groups: dict[str, int], surveys: Surveys, max_counters: int
) -> list[RankSearch]:
    """Completes the first pass of those searches that fit in memory, at least one; numbers the groups as they appear.

    Searches for limits of the same score share their counters.
    """
    begun = list(searches)
    n_bits = _bits_of_a_pass(groups)
    counts = {counted: np.zeros((0, 1 << n_bits), np.int64) for counted in _counted(begun)}
    for survey, codes in _blocks(surveys, partial(_numbered, groups=groups)):
        if n_bits != (n_bits := _bits_of_a_pass(groups)):
            counts = {counted: _folded(of_score, n_bits) for counted, of_score in counts.items()}
        while len(begun) > 1 and len(counts) * (len(groups) << n_bits) > max_counters:
            del begun[-1]
            counts = {counted: counts[counted] for counted in _counted(begun)}
        keys = _keys(survey)
        for (score, counts_tokens), of_score in counts.items():
            of_score.resize((len(groups), 1 << n_bits), refcheck=False)  # in place; new counters are 0
            tokens = _known_tokens(survey) if counts_tokens else None
            _count_scored(of_score, codes, survey, keys(score), tokens)
    for of_score in counts.values():
        _remove_unscored(of_score)
    for search in begun:
        n_scored = counts[search.score, False].sum(axis=1)
        if not n_scored.any():
            raise ConfigError(
                f'params.keep: no document has a score "{search.score}"; its values are missing or not finite'
            )
        search.begin(groups, n_scored)
        search.narrow(counts[search.score, search.counts_tokens])
    return begun


def _run_pass(searches: Sequence[RankSearch], groups: dict[str, int], surveys: Surveys) -> None:
    n_bits = _bits_of_a_pass(groups)
    counts = [np.zeros((len(groups), 1 << n_bits), np.int64) for _ in searches]
    for survey, codes in _blocks(surveys, partial(_codes, groups=groups)):
        keys = _keys(survey)
        for search, of_search in zip(searches, counts, strict=True):
            rows, ranges = search.ranges(survey, keys(search.score), codes, n_bits)
            _count(of_search, codes, survey.group[rows], ranges, survey.tokens[rows] if search.counts_tokens else None)
    for search, of_search in zip(searches, counts, strict=True):
        search.narrow(of_search)


def _bits_of_a_pass(groups: Mapping[str, int]) -> int:
    """Returns how many bits of the ranks a pass finds, such that the counters of a search fit in memory."""
    return FEW_BITS if len(groups) <= MAX_FEW_GROUPS else MANY_BITS


def _folded(counts: Counts, n_bits: int) -> Counts:
    """Returns the counters of fewer, wider ranges, (n_groups, 2^n_bits): each is the sum of those that it contains."""
    _remove_unscored(counts)
    folded: Counts = counts.reshape(len(counts), 1 << n_bits, counts.shape[1] >> n_bits).sum(axis=2)
    return folded


def _blocks(surveys: Surveys, codes_of: Callable[[Survey], Codes]) -> Iterator[tuple[Survey, Codes]]:
    """Yields the documents of each file, a block at a time, with the numbers of the file's groups."""
    for survey in surveys():
        codes = codes_of(survey)
        if len(survey) <= BLOCK_ROWS:
            yield survey, codes
            continue
        for start in range(0, len(survey), BLOCK_ROWS):
            yield survey.part(slice(start, start + BLOCK_ROWS)), codes


def _counted(searches: Iterable[RankSearch]) -> list[tuple[str, bool]]:
    """Returns scores, and whether tokens are counted for them: for a budget of tokens, documents are counted, too."""
    return list(dict.fromkeys((s.score, tokens) for s in searches for tokens in (False, s.counts_tokens)))


def _numbered(survey: Survey, groups: dict[str, int]) -> Codes:
    """Returns the numbers of a file's groups; a new group gets the next number."""
    if new := [name for name in survey.groups if name not in groups]:
        groups.update(zip(new, count(len(groups)), strict=False))
    if len(groups) > MAX_GROUPS:
        raise ConfigError(
            f"params.keep.per has more than {MAX_GROUPS:,} values; name a key that documents can be grouped by, such "
            "as language"
        )
    return _codes(survey, groups)


def _codes(survey: Survey, groups: Mapping[str, int]) -> Codes:
    return np.fromiter(map(groups.__getitem__, survey.groups), np.int64, len(survey.groups))


def _keys(survey: Survey) -> Callable[[str], Keys]:
    """Returns a function from a score to the upper bits of ranks, which are found once."""
    return cache(lambda score: score_keys(survey.scores_of(score)))


def _known_tokens(survey: Survey) -> NDArray[Any]:
    if (survey.tokens == UNKNOWN).any():
        raise ConfigError(
            f"params.keep: best_tokens needs the number of tokens of each document, which {survey.stem} lacks; set "
            "params.embeddings_directory, or annotate with n_tokens among the output_keys"
        )
    return survey.tokens


def _count_scored(counts: Counts, codes: Codes, survey: Survey, keys: Keys, tokens: NDArray[Any] | None) -> None:
    """Adds the documents of a file to the counters of the first pass; arguments as for `_count`."""
    n_bits = counts.shape[1].bit_length() - 1
    group, ranges = survey.group, keys >> np.uint32(SCORE_BITS - n_bits)
    if n_bits == MANY_BITS and not keys.all():  # the lowest range is not only of those without the score
        rows = np.flatnonzero(keys)
        group, ranges, tokens = group[rows], ranges[rows], None if tokens is None else tokens[rows]
    _count(counts, codes, group, ranges, tokens)


def _remove_unscored(counts: Counts) -> None:
    """Sets the counters of documents without the score to 0, where such documents were counted."""
    if counts.shape[1] == 1 << FEW_BITS:
        counts[:, 0] = 0  # of no finite score: the lowest begins with 128


def _count(
    counts: Counts, codes: Codes, group: NDArray[Any], ranges: NDArray[Any], tokens: NDArray[Any] | None
) -> None:
    """Adds n documents of a file, or their tokens, to the counters of their groups and ranges.

    Args:
        counts: The counters.
        codes: Numbers of the file's groups.
        group: Index of each document's group in `codes`, (n,).
        ranges: Range of each document, (n,).
        tokens: Number of tokens of each document, (n,); None to count documents.
    """
    counters = _of_documents(counts.shape[1] * codes, group) + ranges.astype(np.int64)
    # Other types than int64 are several times slower.
    np.add.at(counts.reshape(-1), counters, 1 if tokens is None else tokens.astype(np.int64))


def _of_documents(of_groups: NDArray[Any], group: NDArray[Any]) -> NDArray[Any]:
    """Returns what belongs to each document, (n,), given what belongs to each group; (1,) if there is one group."""
    return of_groups if len(of_groups) == 1 else of_groups[group]
