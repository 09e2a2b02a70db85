"""Counts of left-out items by reason, with examples."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

N_EXAMPLES = 3


@dataclass
class Tally:
    """Counts by reason, with examples.

    Attributes:
        counts: Number by reason.
        examples: First `N_EXAMPLES` examples by reason.
    """

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, example: str) -> None:
        self.counts[reason] += 1
        examples = self.examples.setdefault(reason, [])
        if len(examples) < N_EXAMPLES:
            examples.append(example)

    @property
    def total(self) -> int:
        return self.counts.total()

    def __bool__(self) -> bool:
        return self.total > 0

    def to_json(self) -> dict[str, dict[str, int | list[str]]]:
        return {reason: {"count": n, "examples": self.examples[reason]} for reason, n in self.counts.items()}

    def __str__(self) -> str:
        return "; ".join(f"{n:,} {reason} ({_shown(n, self.examples[reason])})" for reason, n in self.counts.items())


def merged(tallies: Iterable[Tally]) -> Tally:
    """Returns the sum of several tallies, with the first examples."""
    result = Tally()
    for tally in tallies:
        result.counts += tally.counts
        for reason, examples in tally.examples.items():
            known = result.examples.setdefault(reason, [])
            known += examples[: N_EXAMPLES - len(known)]
    return result


def _shown(n: int, examples: list[str]) -> str:
    return ", ".join(examples) + (", ..." if n > len(examples) else "")
