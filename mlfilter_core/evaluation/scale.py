"""The labels that a score stands for."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlfilter_core.errors import ConfigError


@dataclass(frozen=True)
class Scale:
    """Labels in ascending order, such as 0 to 5."""

    labels: tuple[float, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The labels as people write them: 2, not 2.0."""
        return tuple(f"{label:g}" for label in self.labels)

    def spans(self, score: float) -> bool:
        """Returns whether a score lies between the lowest and the highest label."""
        return self.labels[0] <= score <= self.labels[-1]

    def nearest(self, scores: NDArray[np.float64]) -> NDArray[np.int64]:
        """Returns the index of the label nearest to each score; halfway between two, of the higher one.

        Example: with the labels 0 to 5, the scores -0.6, 1.5, 2.4, 9.0 give 0, 2, 2, 5.
        """
        labels = np.array(self.labels)
        return np.searchsorted((labels[1:] + labels[:-1]) / 2, scores, side="right")


def parse_scale(text: str, option: str) -> Scale:
    """Returns the labels in a list such as `0,1,2,3,4,5`.

    Raises:
        ConfigError: A label is not a finite number, or is repeated.
    """
    labels = parse_numbers(text, option)
    repeated = [label for label in set(labels) if labels.count(label) > 1]
    if repeated:
        raise ConfigError(f"{option} {text}: {repeated[0]:g} is repeated; name each label once")
    return Scale(tuple(sorted(labels)))


def parse_numbers(text: str, option: str) -> list[float]:
    """Returns the numbers in a list such as `2,3.5`.

    Raises:
        ConfigError: An item is not a finite number.
    """
    numbers = []
    for part in map(str.strip, text.split(",")):
        try:
            numbers.append(float(part))
        except ValueError:
            numbers.append(math.nan)
        if not math.isfinite(numbers[-1]):
            raise ConfigError(f'{option} {text}: "{part}" is not a finite number; give numbers such as 0,1,2,3')
    return numbers
