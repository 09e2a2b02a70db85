"""The score thresholds that a selection means for a corpus: exact, over the documents of all its files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from mlfilter_core.config.filtering import Bound, Selection
from mlfilter_core.errors import ConfigError
from mlfilter_core.filtering.mixture import notes_on, shares_of
from mlfilter_core.filtering.rank_search import RankSearch, Surveys, run_searches
from mlfilter_core.filtering.ranks import ABOVE_ALL, LOWEST, TIE_BITS, Ranks, ranks, score_of
from mlfilter_core.filtering.survey import NO_GROUP, Survey
from mlfilter_core.wording import natural_order

MAX_SHOWN_GROUPS = 40  # in a text for people; arbitrary


@dataclass(frozen=True)
class ScoreThresholds:
    """The thresholds of one score.

    Attributes:
        score: Name of the score.
        bound: Percentile, threshold or token budget that the selection sets.
        ranks: Lowest rank that is kept, by group, in natural order.
        documents: Documents with the score; 0 where the selection sets the threshold itself.
        shares: Token budget of each of these groups; empty where none is divided by weights.
        notes: What a person should know about these shares.
    """

    score: str
    bound: Bound
    ranks: Mapping[str, int]
    documents: int
    shares: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def reached(self, survey: Survey) -> NDArray[np.bool_]:
        """Returns which documents of a file reach the threshold of their group, bool (n,)."""
        lowest_kept = np.array([self.ranks.get(group, ABOVE_ALL) for group in survey.groups], np.uint64)
        of_documents: Ranks = lowest_kept[survey.group]
        return ranks(survey, self.score, self.bound.best_tokens is not None) >= of_documents

    def describe(self) -> str:
        """Returns the thresholds as text: `education: percentile 70 of 1,203 documents, which is 2.71 and above`."""
        if self.bound.threshold is not None:
            return f"{self.score}: {self.bound.describe()}"
        thresholds = ", ".join(
            f"{f'{group or repr(group)}: ' if len(self.ranks) > 1 or group else ''}{describe_rank(rank)}"
            for group, rank in islice(self.ranks.items(), MAX_SHOWN_GROUPS)
        )
        more = f", and those of {n:,} more groups" if (n := len(self.ranks) - MAX_SHOWN_GROUPS) > 0 else ""
        asked = self.bound.describe(bool(self.shares))
        return f"{self.score}: {asked} of {self.documents:,} documents, which is {thresholds}{more}"


@dataclass(frozen=True)
class Thresholds:
    """The thresholds of a selection.

    Attributes:
        of_scores: Thresholds of each score, in the order of the selection.
        n_needed: Number of thresholds that a document must reach to be kept.
    """

    of_scores: tuple[ScoreThresholds, ...]
    n_needed: int

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know about groups that share tokens by weights."""
        return tuple(note for thresholds in self.of_scores for note in thresholds.notes)

    def kept(self, survey: Survey) -> NDArray[np.bool_]:
        """Returns which documents of a file are kept, bool (n,)."""
        n_reached = np.zeros(len(survey), np.int64)
        for thresholds in self.of_scores:
            n_reached += thresholds.reached(survey)
        return n_reached >= self.n_needed


def find_thresholds(selection: Selection, surveys: Surveys) -> Thresholds:
    """Returns the thresholds of a selection; arguments and errors as for `find_thresholds_of_all`."""
    return find_thresholds_of_all([selection], surveys)[0]


def find_thresholds_of_all(selections: Sequence[Selection], surveys: Surveys) -> list[Thresholds]:
    """Returns the thresholds of each selection, in as few passes over the corpus as one selection takes.

    Args:
        selections: All have the same `per`.
        surveys: Returns the survey of each file, in any order; called once for each pass. With the numbers of tokens if
            a selection needs them.

    Raises:
        ConfigError: No document has a score or the key `per`, or is in a group with a weight above 0, there are too
            many groups, or token counts are needed and not known.
    """
    searches = [
        [RankSearch(name, bound, _shares(bound, selection)) for name, bound in selection.scores.items()]
        for selection in selections
    ]
    groups = run_searches([search for of_selection in searches for search in of_selection], surveys)
    if (per := selections[0].per) is not None and set(groups) <= {NO_GROUP}:
        raise ConfigError(
            f'params.keep.per: no document has a key "{per}"; it is looked up in the annotated lines and in the index '
            "of the embeddings, so add it to output_keys of the annotation or to keys_to_index"
        )
    for selection in selections:
        _check_weights(selection, groups)
    return [
        Thresholds(tuple(_score_thresholds(search, groups) for search in of_selection), selection.n_needed)
        for selection, of_selection in zip(selections, searches, strict=True)
    ]


def describe_rank(rank: int) -> str:
    """Returns, as text, the lowest rank that is kept: `2.71 and above`."""
    if rank == ABOVE_ALL:
        return "nothing"
    if rank == LOWEST:
        return "all that have the score"
    score = f"{score_of(rank):.4g}"
    is_among_ties = rank % (1 << TIE_BITS) != 0
    return f"above {score}, and as many of {score} as fit" if is_among_ties else f"{score} and above"


def _shares(bound: Bound, selection: Selection) -> dict[str, int] | None:
    if bound.best_tokens is None or selection.weights is None:
        return None
    return shares_of(bound.best_tokens, selection.weights)


def _check_weights(selection: Selection, groups: Sequence[str]) -> None:
    if selection.weights is not None and not any(selection.weights.get(group) for group in groups):
        weighted, found = (
            ", ".join(group or repr(group) for group in islice(sorted(named, key=natural_order), MAX_SHOWN_GROUPS))
            for named in (selection.weights, groups)
        )
        raise ConfigError(
            f"params.keep.weights: no document is in a group with a weight above 0; the weights are of {weighted}, and "
            f'the documents have the "{selection.per}" {found}'
        )


def _score_thresholds(search: RankSearch, groups: Sequence[str]) -> ScoreThresholds:
    by_group = dict(zip(groups, search.lowest_kept(), strict=True))
    lowest_kept = {group: by_group[group] for group in sorted(groups, key=natural_order)}
    n_scored = int(search.n_scored.sum()) if search.bound.threshold is None else 0
    if search.shares is None:
        return ScoreThresholds(search.score, search.bound, lowest_kept, n_scored)
    shares = {group: search.shares.get(group, 0) for group in lowest_kept}
    tokens, documents = (dict(zip(groups, each.tolist(), strict=True)) for each in (search.totals, search.n_scored))
    notes = tuple(f"{search.score}: {note}" for note in notes_on(search.shares, tokens, documents))
    return ScoreThresholds(search.score, search.bound, lowest_kept, n_scored, shares, notes)
