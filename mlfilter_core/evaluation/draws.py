"""Several draws of a document to one score."""

from collections import Counter
from collections.abc import Container, Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, get_args

import numpy as np

from mlfilter_core.errors import ConfigError
from mlfilter_core.tallies.tally import Tally

Aggregation = Literal["mean", "max", "min", "majority"]
AGGREGATIONS: tuple[Aggregation, ...] = get_args(Aggregation)
# Heads give float32; a number beyond it is no score, and the squares and sums of such overflow.
LARGEST_SCORE = float(np.finfo(np.float32).max)
N_SHOWN_CHARACTERS = 40
MISSING = object()  # a field that a record lacks, which is not the same as null


def parse_aggregation(text: str, option: str) -> Aggregation:
    """Raises: ConfigError: There is no such way."""
    for aggregation in AGGREGATIONS:
        if text == aggregation:
            return aggregation
    raise ConfigError(f'{option} "{text}" is unknown; give one of {", ".join(AGGREGATIONS)}')


def aggregate(draws: Sequence[float], how: Aggregation) -> float:
    """Returns one score for the valid draws of a document, of which there must be one.

    The majority is the most frequent draw, of several the mean: 2.5 for 4, 2, 2, 3, 3.
    """
    if how == "majority":
        frequencies = Counter(draws)
        highest = max(frequencies.values())
        return fmean(draw for draw, frequency in frequencies.items() if frequency == highest)
    if how == "mean":
        return fmean(draws)
    return max(draws) if how == "max" else min(draws)


def valid_draws(
    values: Iterable[Any], labels: Container[float] | None, invalid: Tally, path: Path, line: int
) -> list[float]:
    """Returns the draws that count.

    Args:
        values: As they stand in a record.
        labels: What a draw may be; None takes any finite number.
        invalid: Takes the others, by reason: `missing`, `null`, `not_a_number`, `not_finite`, `not_a_label`.
        path: Where they stand, for the examples.
        line: In it.
    """
    draws = []
    for value in values:
        reason = _why_invalid(value, labels)
        if reason:
            invalid.add(reason, f"{path}:{line}: {_shown(value)}")
        else:
            draws.append(float(value))
    return draws


def _why_invalid(value: Any, labels: Container[float] | None) -> str | None:
    if value is MISSING:
        return "missing"
    if value is None:
        return "null"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "not_a_number"
    if not abs(value) <= LARGEST_SCORE:  # NaN neither
        return "not_finite"
    return "not_a_label" if labels is not None and value not in labels else None


def _shown(value: Any) -> str:
    if value is MISSING:
        return "nothing"
    if value is None:
        return "null"
    return str(value)[:N_SHOWN_CHARACTERS] if isinstance(value, (str, int, float)) else f"a {type(value).__name__}"
