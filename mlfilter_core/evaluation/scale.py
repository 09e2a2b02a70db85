"""The labels that a score may have."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlfilter_core.errors import ConfigError


@dataclass(frozen=True)
class Scale:
    """The labels in ascending order, such as 0 to 5."""

    labels: tuple[float, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The labels as people write them: 2, not 2.0."""
        return tuple(f"{label:g}" for label in self.labels)

    def spans(self, score: float) -> bool:
        """Tells whether a score lies between the lowest and the highest label."""
        return self.labels[0] <= score <= self.labels[-1]

    def nearest(self, scores: NDArray[np.float64]) -> NDArray[np.int64]:
        """Returns the place of the label next to each score, the higher one half way.

        Example: of the labels 0 to 5 for -0.6, 1.5, 2.4, 9.0 the places 0, 2, 2, 5.
        """
        labels = np.array(self.labels)
        return np.searchsorted((labels[1:] + labels[:-1]) / 2, scores, side="right")


def parse_scale(text: str, option: str) -> Scale:
    """Returns the labels of a list such as `0,1,2,3,4,5`.

    Raises:
        ConfigError: One is no finite number, or stands there twice.
    """
    labels = parse_numbers(text, option)
    twice = [label for label in set(labels) if labels.count(label) > 1]
    if twice:
        raise ConfigError(f"{option} {text}: {twice[0]:g} stands there twice; name each label once")
    return Scale(tuple(sorted(labels)))


def parse_numbers(text: str, option: str) -> list[float]:
    """Returns the numbers of a list such as `2,3.5`.

    Raises:
        ConfigError: One is no finite number.
    """
    return [_number(part.strip(), text, option) for part in text.split(",")]


def _number(part: str, text: str, option: str) -> float:
    try:
        number = float(part)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ConfigError(f'{option} {text}: "{part}" is no number; give numbers such as 0,1,2,3')
    return number
