"""From where on a score is good enough, exactly, over all documents of a corpus.

Documents are ordered by their score, those of equal scores by a hash of their place. The place in that order is a
number of 64 bits, the rank. A limit is found 16 bits at a time: each pass over the surveys counts what lies in each of
65,536 ranges, and the next looks into the range that the limit lies in. So memory does not depend on the number of
documents, and the limit has no error.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from mlfilter_core.config.filtering import Bound, Selection
from mlfilter_core.errors import ConfigError
from mlfilter_core.filtering.survey import NO_GROUP, UNKNOWN, Survey

Surveys = Callable[[], Iterable[Survey]]
Ranks = NDArray[np.uint64]

LEVEL_BITS = 16
N_RANGES = 1 << LEVEL_BITS
SCORE_LEVELS, ALL_LEVELS = 2, 4  # of 16 bits: a score has 32, and so has the hash
MAX_GROUPS = 1024  # of a corpus; each takes half a MB. Arbitrary.
MAX_COUNTED = 1 << 27  # numbers of searches side by side: 1 GiB
NOTHING = 2**64 - 1  # a rank that no document reaches: its score would be NaN
EVERYTHING = 1  # a rank that each document with a score reaches


@dataclass(frozen=True)
class Cut:
    """The lowest rank that is kept."""

    rank: int

    def describe(self) -> str:
        """Returns its score in words: `2.71 and above`."""
        if self.rank == NOTHING:
            return "nothing"
        if self.rank == EVERYTHING:
            return "all that have the score"
        score = f"{_score_of(self.rank >> 32):.4g}"
        is_within_equals = self.rank & (2**32 - 1) != 0
        return f"above {score}, and as many of {score} as fit" if is_within_equals else f"{score} and above"


@dataclass(frozen=True)
class ScoreCuts:
    """The cuts of one score.

    Attributes:
        score: Its name.
        bound: What was asked.
        by_group: Of each group.
        documents: With the score, that the cuts were found in; 0 of a threshold, which needs none.
    """

    score: str
    bound: Bound
    by_group: Mapping[str, Cut]
    documents: int

    def reached(self, survey: Survey) -> NDArray[np.bool_]:
        """Returns of which documents of a file this score is good enough, bool (n,)."""
        nothing = Cut(NOTHING)
        of_group = [self.by_group.get(group, nothing).rank for group in survey.groups]
        if not of_group:
            return np.zeros(0, np.bool_)
        places = ranks(survey, self.score, among_equals=self.bound.best_tokens is not None)
        return places >= np.array(of_group, np.uint64)[survey.group]

    def describe(self) -> str:
        """Returns it in words: `education: percentile 70 of 1,203 documents, which is 2.71 and above`."""
        if self.bound.threshold is not None:
            return f"{self.score}: {self.bound.describe()}"
        cuts = ", ".join(
            f"{f'{group or repr(group)}: ' if len(self.by_group) > 1 or group else ''}{cut.describe()}"
            for group, cut in sorted(self.by_group.items())
        )
        return f"{self.score}: {self.bound.describe()} of {self.documents:,} documents, which is {cuts}"


@dataclass(frozen=True)
class Cuts:
    """What a document must reach to be kept.

    Attributes:
        of_scores: In the order of the selection.
        n_needed: So many scores must be good enough.
    """

    of_scores: tuple[ScoreCuts, ...]
    n_needed: int

    def kept(self, survey: Survey) -> NDArray[np.bool_]:
        """Returns which documents of a file are kept, bool (n,)."""
        n_good = np.zeros(len(survey), np.int64)
        for cuts in self.of_scores:
            n_good += cuts.reached(survey)
        return n_good >= self.n_needed


def find_cuts(selection: Selection, surveys: Surveys) -> Cuts:
    """Returns what a selection means for a corpus; arguments and errors as in `find_cuts_of_all`."""
    return find_cuts_of_all([selection], surveys)[0]


def find_cuts_of_all(selections: Sequence[Selection], surveys: Surveys) -> list[Cuts]:
    """Returns what each of some selections means for a corpus, in as few passes over it as one of them takes.

    Args:
        selections: Which documents are kept; the first has every score of the others, and the same `per`.
        surveys: Gives the survey of each file, again and again, in any order.

    Raises:
        ConfigError: No document has a score or the key, or tokens are to be counted that are not known.
    """
    bounds = [bound for selection in selections for bound in selection.scores.values()]
    needs_tokens = any(bound.best_tokens is not None for bound in bounds)
    groups, scored = _count(selections[0], surveys, needs_tokens)
    searches = [
        {name: _Search.of(name, bound, scored[name]) for name, bound in selection.scores.items()}
        for selection in selections
    ]
    _descend([search for own in searches for search in own.values() if search is not None], groups, surveys)
    return [
        Cuts(
            tuple(
                _score_cuts(name, bound, own[name], groups, scored[name]) for name, bound in selection.scores.items()
            ),
            selection.n_needed,
        )
        for selection, own in zip(selections, searches, strict=True)
    ]


def ranks(survey: Survey, score: str, among_equals: bool = True) -> Ranks:
    """Returns the place of each document in the order of a score, uint64 (n,); 0 of those without it.

    Args:
        survey: Of a file.
        score: Its name.
        among_equals: Whether the places of documents with equal scores differ; else they have the first of them.
    """
    values = survey.scores_of(score)
    by_score = np.where(np.isnan(values), np.uint64(0), _keys(values).astype(np.uint64) << np.uint64(32))
    if not among_equals:
        return by_score
    digest = hashlib.blake2b(survey.stem.encode(), digest_size=8).digest()
    hashes = _mixed(np.arange(len(survey), dtype=np.uint64) + np.uint64(int.from_bytes(digest)))
    return np.where(by_score > 0, by_score | hashes, by_score)


def _keys(values: NDArray[np.float32]) -> NDArray[np.uint32]:
    """Returns numbers in the order of the values: https://stereopsis.com/radix.html. No finite one has 0."""
    bits = (values + np.float32(0)).view(np.uint32)  # -0 becomes 0
    return np.where(bits >> 31 != 0, ~bits, bits | np.uint32(1 << 31)).astype(np.uint32)


def _score_of(key: int) -> float:
    bits = key & 0x7FFFFFFF if key >> 31 else ~key & 0xFFFFFFFF
    return float(np.array(bits, np.uint32).view(np.float32))


def _mixed(numbers: Ranks) -> Ranks:
    """Returns 32 bits of each, as good as random: splitmix64, by Sebastiano Vigna."""
    mixed = numbers + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (mixed ^ (mixed >> np.uint64(31))) >> np.uint64(32)


def _count(
    selection: Selection, surveys: Surveys, needs_tokens: bool
) -> tuple[list[str], dict[str, NDArray[np.int64]]]:
    """Returns the groups, and of each score how many documents of each group have it, int64 (n_groups,)."""
    counts: dict[str, Counter[str]] = {name: Counter() for name in selection.scores}
    groups: set[str] = set()
    without_tokens = ""
    for survey in surveys():
        groups.update(survey.groups)
        for name, of_groups in counts.items():
            n_scored = np.bincount(survey.group[~np.isnan(survey.scores_of(name))], minlength=len(survey.groups))
            of_groups.update(dict(zip(survey.groups, n_scored.tolist(), strict=True)))
        if (survey.tokens == UNKNOWN).any():
            without_tokens = without_tokens or survey.stem
    if selection.per is not None and groups <= {NO_GROUP}:
        raise ConfigError(
            f'params.keep.per: no document has a key "{selection.per}"; it is looked up in the annotated lines and in '
            "the index of the embeddings, so add it to output_keys of the annotation or to keys_to_index"
        )
    if len(groups) > MAX_GROUPS:
        raise ConfigError(
            f'params.keep.per: "{selection.per}" has {len(groups)} values, {MAX_GROUPS} at most; name a key that '
            "documents can be grouped by, such as language"
        )
    for name, of_groups in counts.items():
        if not of_groups.total():
            raise ConfigError(f'params.keep: no document has a score "{name}"; its values are missing or not finite')
    if without_tokens and needs_tokens:
        raise ConfigError(
            f"params.keep: best_tokens needs the tokens of each document, which {without_tokens} does not say; set "
            "params.embeddings_directory, or annotate with n_tokens among the output_keys"
        )
    ordered = sorted(groups)
    return ordered, {name: np.array([n[group] for group in ordered], np.int64) for name, n in counts.items()}


@dataclass
class _Search:
    """For the limit of one score in each of the n groups, 16 bits at a time.

    Attributes:
        score: Its name.
        of_tokens: Whether budgets are numbers of tokens, or else of documents.
        left: int64 (n,), of the budgets, below what is counted at this level.
        prefixes: uint64 (n,), the leading bits of the rank with which, from the best on, the budget is exceeded.
        never: bool (n,), where it never is.
    """

    score: str
    of_tokens: bool
    left: NDArray[np.int64]
    prefixes: NDArray[np.uint64]
    never: NDArray[np.bool_]

    @staticmethod
    def of(score: str, bound: Bound, n_scored: NDArray[np.int64]) -> "_Search | None":
        """Returns the search for a bound, None for a threshold, which is known.

        Args:
            score: Its name.
            bound: What is asked.
            n_scored: int64 (n,), documents of each group that have the score.
        """
        if bound.threshold is not None:
            return None
        if bound.best_tokens is not None:
            left = np.full(len(n_scored), bound.best_tokens, np.int64)
        else:
            # As it was written: in floats, 32.3 % of 1000 is 322.
            percentile = Fraction(str(bound.percentile_or_default))
            # The range that the last of the documents to keep lies in is where their number is reached, not passed.
            left = np.array([n - n * percentile // 100 - 1 for n in n_scored.tolist()], np.int64)
        n = len(n_scored)
        return _Search(score, bound.best_tokens is not None, left, np.zeros(n, np.uint64), np.zeros(n, np.bool_))

    @property
    def n_levels(self) -> int:
        return ALL_LEVELS if self.of_tokens else SCORE_LEVELS

    def count(
        self, counts: NDArray[np.int64], survey: Survey, rank: Ranks, places: NDArray[np.int64], level: int
    ) -> None:
        """Counts the documents of a file, or their tokens, in the ranges of the level below the prefixes.

        Args:
            counts: int64 (n, N_RANGES), of the files before.
            survey: Of the file.
            rank: uint64 (n_documents,).
            places: int64 (n_groups_of_the_file,), where its groups stand among all.
            level: From 0 on.
        """
        shift = np.uint64(64 - LEVEL_BITS * (level + 1))
        counted = rank > 0
        if level > 0:
            counted &= (rank >> (shift + np.uint64(LEVEL_BITS))) == self.prefixes[places][survey.group]
        ranges = ((rank[counted] >> shift) & np.uint64(N_RANGES - 1)).astype(np.int64)
        ranges += places[survey.group[counted]] * N_RANGES
        np.add.at(counts.reshape(-1), ranges, survey.tokens[counted] if self.of_tokens else np.int64(1))

    def narrow(self, counts: NDArray[np.int64], level: int) -> None:
        """Goes on within the range, of each group, that the limit lies in."""
        for i, of_group in enumerate(counts):
            from_best = of_group[::-1].cumsum()
            place = int(np.searchsorted(from_best, self.left[i], side="right"))
            if level == 0:
                self.never[i] = place == N_RANGES
            place = min(place, N_RANGES - 1)
            self.left[i] -= from_best[place - 1] if place > 0 else 0
            self.prefixes[i] = (int(self.prefixes[i]) << LEVEL_BITS) | (N_RANGES - 1 - place)

    def limits(self) -> list[int | None]:
        """Returns the leading bits of the limit of each group; None where all fit."""
        limits = zip(self.never.tolist(), self.prefixes.tolist(), strict=True)
        return [None if is_never else prefix for is_never, prefix in limits]


def _descend(searches: Sequence[_Search], groups: Sequence[str], surveys: Surveys) -> None:
    """Brings some searches to their end, as many of them side by side as memory is for."""
    n_together = max(1, MAX_COUNTED // (len(groups) * N_RANGES)) if groups else 1
    place_of = {group: i for i, group in enumerate(groups)}
    for first in range(0, len(searches), n_together):
        together = searches[first : first + n_together]
        for level in range(max(search.n_levels for search in together)):
            active = [
                (search, np.zeros((len(groups), N_RANGES), np.int64)) for search in together if level < search.n_levels
            ]
            for survey in surveys():
                places = np.array([place_of[group] for group in survey.groups], np.int64)
                known: dict[tuple[str, bool], Ranks] = {}
                for search, counts in active:
                    key = (search.score, search.of_tokens)
                    if key not in known:
                        known[key] = ranks(survey, search.score, among_equals=search.of_tokens)
                    search.count(counts, survey, known[key], places, level)
            for search, counts in active:
                search.narrow(counts, level)


def _score_cuts(
    name: str, bound: Bound, search: _Search | None, groups: Sequence[str], n_scored: NDArray[np.int64]
) -> ScoreCuts:
    if search is None:
        cut = Cut(int(_keys(np.array([bound.threshold], np.float32))[0]) << 32)
        return ScoreCuts(name, bound, dict.fromkeys(groups, cut), 0)
    cuts = {
        group: _cut(limit, search.of_tokens, n > 0)
        for group, limit, n in zip(groups, search.limits(), n_scored.tolist(), strict=True)
    }
    return ScoreCuts(name, bound, cuts, int(n_scored.sum()))


def _cut(limit: int | None, is_exclusive: bool, has_scores: bool) -> Cut:
    """Returns the lowest rank that is kept: above a document that does not fit, or from the limit's score on."""
    if not has_scores:
        return Cut(NOTHING)
    if limit is None:  # all fit
        return Cut(EVERYTHING)
    return Cut(limit + 1 if is_exclusive else limit << 32)
