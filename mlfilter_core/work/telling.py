"""Which of very many files a table shows."""

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Key = TypeVar("Key")


class Most(Generic[Key]):
    """Those of very many that have most of something; of equal ones the first."""

    def __init__(self, n: int, amount: Callable[[Key], float]) -> None:
        """Takes how many are wanted, and the function that returns how much one has."""
        self._n = n
        self._amount = amount
        self._found: list[Key] = []
        self._least = float("-inf")  # what one needs more of, as there are enough that have as much

    def add(self, one: Key) -> None:
        """Adds one."""
        if self._amount(one) > self._least:
            self._found.append(one)
            if len(self._found) == 2 * self._n:
                self._found = self.sorted()
                self._least = self._amount(self._found[-1])

    def sorted(self) -> list[Key]:
        """Returns those that have most, these first."""
        return sorted(self._found, key=self._amount, reverse=True)[: self._n]


def most_telling(failed: Sequence[Key], rejecting: Sequence[Key], slowest: Sequence[Key], most: int) -> list[Key]:
    """Returns the files that failed, those with most rejected lines, and the slowest, each once.

    Args:
        failed: Files that failed.
        rejecting: Files with rejected lines, those with most first; they get at most half of what failed ones leave.
        slowest: Files by time, the slowest first.
        most: Most files.
    """
    n_rejecting = max(0, most - len(failed)) // 2
    return list(dict.fromkeys([*failed, *rejecting[:n_rejecting], *slowest]))[:most]
