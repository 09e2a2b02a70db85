"""What other limits would keep of a corpus."""

from collections.abc import Sequence
from dataclasses import dataclass

from mlfilter_core.config.filtering import Bound, Selection
from mlfilter_core.filtering.cuts import Surveys, find_cuts
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


def preview(
    selection: Selection, percentiles: Sequence[float], thresholds: Sequence[float], surveys: Surveys
) -> list[Kept]:
    """Returns what a selection would keep, then what each percentile and threshold of each of its scores would.

    Raises:
        ConfigError: As `find_cuts`.
    """
    bounds = [Bound(percentile=value) for value in percentiles] + [Bound(threshold=value) for value in thresholds]
    others = [Selection(scores={name: bound}, per=selection.per) for name in selection.scores for bound in bounds]
    others = [other for other in others if other.scores != selection.scores]
    return [_kept(each, surveys) for each in (selection, *others)]


def _kept(selection: Selection, surveys: Surveys) -> Kept:
    cuts = find_cuts(selection, surveys)
    counts = KeptCounts()
    for survey in surveys():
        counts += KeptCounts.of(survey.known_tokens(), cuts.kept(survey))
    limits = [bound.describe() for bound in selection.scores.values()]
    if len(limits) > 1:
        limits.append(f"{selection.n_needed} of {len(limits)}")
    return Kept(", ".join(selection.scores), ", ".join(limits), counts)
