"""What other limits would keep of a corpus."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mlfilter_core.config.filtering import Bound, Selection
from mlfilter_core.errors import ConfigError
from mlfilter_core.filtering.cuts import Surveys, find_cuts_of_all
from mlfilter_core.filtering.kept_counts import KeptCounts, share


@dataclass(frozen=True)
class Kept:
    """What a selection keeps.

    Attributes:
        scores: Names of the scores that are looked at.
        limit: In words.
        counts: Of the corpus.
    """

    scores: str
    limit: str
    counts: KeptCounts

    def cells(self) -> list[str]:
        """Returns a row of a table: score, limit, documents, share of them, tokens, share of them."""
        counts = self.counts
        tokens = [f"{counts.kept_tokens:,}", share(counts.kept_tokens, counts.tokens)] if counts.tokens else ["-", "-"]
        return [self.scores, self.limit, f"{counts.kept:,}", share(counts.kept, counts.documents), *tokens]


def bounds_of(percentiles: Sequence[float], thresholds: Sequence[float]) -> list[Bound]:
    """Returns the bounds with these values.

    Raises:
        ConfigError: One is not within 0 to 100, or not finite.
    """
    outside = [value for value in percentiles if not 0 <= value < 100]
    if outside:
        raise ConfigError(f"--percentiles: {outside[0]:g} is none; give numbers from 0 to below 100")
    if not all(map(math.isfinite, thresholds)):
        raise ConfigError("--thresholds: give finite numbers")
    return [Bound(percentile=value) for value in percentiles] + [Bound(threshold=value) for value in thresholds]


def preview(selection: Selection, bounds: Sequence[Bound], surveys: Surveys) -> list[Kept]:
    """Returns what a selection would keep, then what each of some bounds for each of its scores would.

    Raises:
        ConfigError: As `find_cuts_of_all`.
    """
    others = [Selection(scores={name: bound}, per=selection.per) for name in selection.scores for bound in bounds]
    shown = [selection, *(other for other in others if _limits(other) != _limits(selection))]
    cuts = find_cuts_of_all(shown, surveys)
    counts = [KeptCounts()] * len(shown)
    for survey in surveys():
        tokens = survey.known_tokens()
        counts = [known + KeptCounts.of(tokens, each.kept(survey)) for known, each in zip(counts, cuts, strict=True)]
    return [_kept(each, of_it) for each, of_it in zip(shown, counts, strict=True)]


def _kept(selection: Selection, counts: KeptCounts) -> Kept:
    limits = list(_limits(selection).values())
    if len(limits) > 1:
        limits.append(f"{selection.n_needed} of {len(limits)}")
    return Kept(", ".join(selection.scores), ", ".join(limits), counts)


def _limits(selection: Selection) -> dict[str, str]:
    return {name: bound.describe() for name, bound in selection.scores.items()}
