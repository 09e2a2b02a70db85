"""What other limits would keep of a corpus."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mlfilter_core.config.filtering import Bound, Selection
from mlfilter_core.filtering.cuts import Surveys, find_cuts
from mlfilter_core.filtering.survey import UNKNOWN


@dataclass(frozen=True)
class Kept:
    """What a selection keeps.

    Attributes:
        scores: Names of the scores that are looked at.
        limit: In words.
        documents: All of them.
        kept: Some of them.
        tokens: Of all documents that say how many they have.
        kept_tokens: Of those that are kept.
    """

    scores: str
    limit: str
    documents: int
    kept: int
    tokens: int
    kept_tokens: int

    def cells(self) -> list[str]:
        """Returns a row of a table: score, limit, documents, share of them, tokens, share of them."""
        tokens = [f"{self.kept_tokens:,}", share(self.kept_tokens, self.tokens)] if self.tokens else ["-", "-"]
        return [self.scores, self.limit, f"{self.kept:,}", share(self.kept, self.documents), *tokens]


def share(part: int, whole: int) -> str:
    """Returns a part in per cent: `30.1 %`."""
    return f"{100 * part / whole:.1f} %" if whole else "0 %"


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
    n_documents = n_kept = n_tokens = n_kept_tokens = 0
    for survey in surveys():
        kept, tokens = cuts.kept(survey), np.where(survey.tokens == UNKNOWN, 0, survey.tokens)
        n_documents += len(kept)
        n_kept += int(kept.sum())
        n_tokens += int(tokens.sum())
        n_kept_tokens += int(tokens[kept].sum())
    limits = [bound.describe() for bound in selection.scores.values()]
    if len(limits) > 1:
        limits.append(f"{selection.n_needed} of {len(limits)}")
    return Kept(", ".join(selection.scores), ", ".join(limits), n_documents, n_kept, n_tokens, n_kept_tokens)
