"""The draws of an annotator for a document, and the one score that they become."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal, get_args

from mlfilter_core.errors import ConfigError
from mlfilter_core.evaluation.scale import Scale
from mlfilter_core.tallies.tally import Tally

Aggregation = Literal["mean", "max", "min", "majority"]
AGGREGATIONS: tuple[Aggregation, ...] = get_args(Aggregation)
# Heads write float32. Sums and squares of larger numbers could overflow.
LARGEST_SCORE = (2 - 2.0**-23) * 2.0**127  # of float32, without loading NumPy for --help
N_SHOWN_CHARACTERS = 40
MISSING = object()  # value of a field that a record lacks; null is another case


@dataclass(frozen=True)
class Scoring:
    """How the draws for a document become its score.

    Attributes:
        aggregation: Aggregation of several valid draws to one score.
        scale: Labels that are valid draws; None accepts any finite number.
    """

    aggregation: Aggregation
    scale: Scale | None = None

    def score(self, draws: Iterable[Any], invalid: Tally, place: str) -> float | None:
        """Returns the score of a document; None where no draw is valid. The arguments are those of `valid_draws`."""
        valid = self.valid_draws(draws, invalid, place)
        return aggregate(valid, self.aggregation) if valid else None

    def valid_draws(self, draws: Iterable[Any], invalid: Tally, place: str) -> list[float]:
        """Returns the draws that count.

        Args:
            draws: Values as the record contains them.
            invalid: Receives the others, by reason: `missing`, `null`, `not_a_number`, `not_finite`, `not_a_label`.
            place: `<file>:<line>` of the draws, for the examples.
        """
        valid = []
        for draw in draws:
            reason = self._why_invalid(draw)
            if reason:
                invalid.add(reason, f"{place}: {_shown(draw)}")
            else:
                valid.append(float(draw))
        return valid

    def _why_invalid(self, draw: Any) -> str | None:
        if draw is MISSING:
            return "missing"
        if draw is None:
            return "null"
        if isinstance(draw, bool) or not isinstance(draw, (int, float)):
            return "not_a_number"
        if not abs(draw) <= LARGEST_SCORE:  # also true of NaN
            return "not_finite"
        return "not_a_label" if self.scale and draw not in self.scale.labels else None


def aggregate(draws: Sequence[float], how: Aggregation) -> float:
    """Returns one score for at least one valid draw.

    The majority is the most frequent draw, or the mean of several most frequent ones: 2.5 for 4, 2, 2, 3, 3.
    """
    if how == "majority":
        frequencies = Counter(draws)
        highest = max(frequencies.values())
        return fmean(draw for draw, frequency in frequencies.items() if frequency == highest)
    if how == "mean":
        return fmean(draws)
    return max(draws) if how == "max" else min(draws)


def parse_aggregation(text: str, option: str) -> Aggregation:
    """Returns the aggregation of this name.

    Raises:
        ConfigError: There is none.
    """
    if text not in AGGREGATIONS:
        raise ConfigError(f'{option} "{text}" is unknown; give one of {", ".join(AGGREGATIONS)}')
    return text


def keep_last(scores: dict[str, float | None], document_id: str, score: float | None, duplicates: Tally) -> None:
    """Sets the score of a document. An earlier score is counted in `duplicates`, as equal or different."""
    if document_id in scores:
        is_same = scores[document_id] == score
        duplicates.add("with_same_score" if is_same else "with_other_score", document_id)
    scores[document_id] = score


def _shown(draw: Any) -> str:
    if draw is MISSING:
        return "nothing"
    if draw is None:
        return "null"
    return str(draw)[:N_SHOWN_CHARACTERS] if isinstance(draw, (str, int, float)) else f"a {type(draw).__name__}"
