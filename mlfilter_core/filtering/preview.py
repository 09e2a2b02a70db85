"""How much of a corpus other percentiles and thresholds would keep."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mlfilter_core.config.filtering import Bound, Selection
from mlfilter_core.errors import ConfigError
from mlfilter_core.filtering.kept_counts import KeptCounts
from mlfilter_core.filtering.rank_search import Surveys
from mlfilter_core.filtering.thresholds import Thresholds, find_thresholds_of_all
from mlfilter_core.wording import share


@dataclass(frozen=True)
class Kept:
    """What a selection keeps of a corpus.

    Attributes:
        scores: Names of the scores.
        bounds: Bounds of the scores as text.
        counts: Counts of the corpus.
        notes: What a person should know about groups that share tokens by weights.
    """

    scores: str
    bounds: str
    counts: KeptCounts
    notes: tuple[str, ...] = ()

    def cells(self) -> list[str]:
        """Returns a row of a table: scores, bounds, kept documents, their share, kept tokens, their share."""
        counts = self.counts
        tokens = [f"{counts.kept_tokens:,}", share(counts.kept_tokens, counts.tokens)] if counts.tokens else ["-", "-"]
        return [self.scores, self.bounds, f"{counts.kept:,}", share(counts.kept, counts.documents), *tokens]


def bounds_of(percentiles: Sequence[float], thresholds: Sequence[float]) -> list[Bound]:
    """Returns one bound for each percentile and each threshold.

    Raises:
        ConfigError: A percentile is not in [0, 100), or a threshold is not finite.
    """
    outside = [value for value in percentiles if not 0 <= value < 100]
    if outside:
        raise ConfigError(f"--percentiles: {outside[0]:g} is not a percentile; give numbers from 0 to below 100")
    if not all(map(math.isfinite, thresholds)):
        raise ConfigError("--thresholds: give finite numbers")
    return [Bound(percentile=value) for value in percentiles] + [Bound(threshold=value) for value in thresholds]


def preview(selection: Selection, bounds: Sequence[Bound], surveys: Surveys) -> list[Kept]:
    """Returns what a selection would keep, then what each bound would keep, for each score of the selection alone.

    Raises:
        ConfigError: As for `find_thresholds_of_all`.
    """
    others = [Selection(scores={name: bound}, per=selection.per) for name in selection.scores for bound in bounds]
    shown = [selection, *(other for other in others if _bounds(other) != _bounds(selection))]
    thresholds = find_thresholds_of_all(shown, surveys)
    counts = [KeptCounts()] * len(shown)
    for survey in surveys():
        tokens = survey.known_tokens()
        counts = [
            known + KeptCounts.of(tokens, each.kept(survey)) for known, each in zip(counts, thresholds, strict=True)
        ]
    return [_kept(*of_it) for of_it in zip(shown, thresholds, counts, strict=True)]


def _kept(selection: Selection, thresholds: Thresholds, counts: KeptCounts) -> Kept:
    bounds = list(_bounds(selection).values())
    if len(bounds) > 1:
        bounds.append(f"{selection.n_needed} of {len(bounds)}")
    return Kept(", ".join(selection.scores), ", ".join(bounds), counts, thresholds.notes)


def _bounds(selection: Selection) -> dict[str, str]:
    return {name: bound.describe(selection.weights is not None) for name, bound in selection.scores.items()}
