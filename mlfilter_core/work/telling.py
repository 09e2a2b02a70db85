"""Which of very many files a table shows."""

from collections.abc import Sequence
from typing import TypeVar

Key = TypeVar("Key")


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
