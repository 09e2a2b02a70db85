"""The score thresholds that a selection means for a corpus: exact, over the documents of all its files."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlfilter_core.config.filtering import Bound, Selection
from mlfilter_core.errors import ConfigError
from mlfilter_core.filtering.rank_search import RankSearch, Surveys, run_searches
from mlfilter_core.filtering.ranks import ABOVE_ALL, LOWEST, TIE_BITS, lowest_rank_of, ranks, score_of
from mlfilter_core.filtering.survey import NO_GROUP, UNKNOWN, Survey

MAX_GROUPS = 1024  # per corpus; the counters of a group take half a MB. Arbitrary.


@dataclass(frozen=True)
class ScoreThresholds:
    """The thresholds of one score.

    Attributes:
        score: Name of the score.
        bound: Percentile, threshold or token budget that the selection sets.
        ranks: Lowest rank that is kept, by group.
        documents: Documents with the score; 0 where the selection sets the threshold itself.
    """

    score: str
    bound: Bound
    ranks: Mapping[str, int]
    documents: int

    def reached(self, survey: Survey) -> NDArray[np.bool_]:
        """Returns which documents of a file reach the threshold of their group, bool (n,)."""
        lowest_kept = np.array([self.ranks.get(group, ABOVE_ALL) for group in survey.groups], np.uint64)
        return ranks(survey, self.score, self.bound.best_tokens is not None) >= lowest_kept[survey.group]

    def describe(self) -> str:
        """Returns the thresholds as text: `education: percentile 70 of 1,203 documents, which is 2.71 and above`."""
        if self.bound.threshold is not None:
            return f"{self.score}: {self.bound.describe()}"
        thresholds = ", ".join(
            f"{f'{group or repr(group)}: ' if len(self.ranks) > 1 or group else ''}{describe_rank(rank)}"
            for group, rank in sorted(self.ranks.items())
        )
        return f"{self.score}: {self.bound.describe()} of {self.documents:,} documents, which is {thresholds}"


@dataclass(frozen=True)
class Thresholds:
    """The thresholds of a selection.

    Attributes:
        of_scores: Thresholds of each score, in the order of the selection.
        n_needed: Number of thresholds that a document must reach to be kept.
    """

    of_scores: tuple[ScoreThresholds, ...]
    n_needed: int

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
        selections: The first one names every score of the others, and all have the same `per`.
        surveys: Returns the survey of each file, in any order; called once for each pass.

    Raises:
        ConfigError: No document has a score or the key `per`, or token counts are needed and not known.
    """
    bounds = [bound for selection in selections for bound in selection.scores.values()]
    n_scored = _count_scored(selections[0], surveys, any(bound.best_tokens is not None for bound in bounds))
    searches = [
        {
            name: RankSearch.of(name, bound, np.array(list(n_scored[name].values()), np.int64))
            for name, bound in selection.scores.items()
            if bound.threshold is None
        }
        for selection in selections
    ]
    groups = list(n_scored[next(iter(n_scored))])
    run_searches([search for of_selection in searches for search in of_selection.values()], groups, surveys)
    return [
        Thresholds(
            tuple(
                _score_thresholds(name, bound, found.get(name), n_scored[name])
                for name, bound in selection.scores.items()
            ),
            selection.n_needed,
        )
        for selection, found in zip(selections, searches, strict=True)
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


def _count_scored(selection: Selection, surveys: Surveys, needs_tokens: bool) -> dict[str, dict[str, int]]:
    """Returns how many documents have each score, by score and group; the groups are sorted."""
    counts: dict[str, Counter[str]] = {name: Counter() for name in selection.scores}
    groups: set[str] = set()
    for survey in surveys():
        groups.update(survey.groups)
        for name, of_groups in counts.items():
            n_scored = np.bincount(survey.group[~np.isnan(survey.scores_of(name))], minlength=len(survey.groups))
            of_groups.update(dict(zip(survey.groups, n_scored.tolist(), strict=True)))
        if needs_tokens and (survey.tokens == UNKNOWN).any():
            raise ConfigError(
                f"params.keep: best_tokens needs the number of tokens of each document, which {survey.stem} lacks; set "
                "params.embeddings_directory, or annotate with n_tokens among the output_keys"
            )
    _check_groups(selection.per, groups)
    for name, of_groups in counts.items():
        if not of_groups.total():
            raise ConfigError(f'params.keep: no document has a score "{name}"; its values are missing or not finite')
    return {name: {group: of_groups[group] for group in sorted(groups)} for name, of_groups in counts.items()}


def _check_groups(per: str | None, groups: set[str]) -> None:
    if per is not None and groups <= {NO_GROUP}:
        raise ConfigError(
            f'params.keep.per: no document has a key "{per}"; it is looked up in the annotated lines and in the index '
            "of the embeddings, so add it to output_keys of the annotation or to keys_to_index"
        )
    if len(groups) > MAX_GROUPS:
        raise ConfigError(
            f'params.keep.per: "{per}" has {len(groups)} values, more than {MAX_GROUPS}; name a key that documents can '
            "be grouped by, such as language"
        )


def _score_thresholds(
    name: str, bound: Bound, search: RankSearch | None, n_scored: Mapping[str, int]
) -> ScoreThresholds:
    if bound.threshold is not None:
        return ScoreThresholds(name, bound, dict.fromkeys(n_scored, lowest_rank_of(bound.threshold)), 0)
    assert search is not None
    lowest_kept = dict(zip(n_scored, search.lowest_kept(), strict=True))
    return ScoreThresholds(name, bound, lowest_kept, sum(n_scored.values()))
