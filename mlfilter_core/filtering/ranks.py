"""The rank of a document in the order of a score, as a 64-bit number.

The upper 32 bits are in the order of the scores. The lower 32 bits are a hash of the document's position: they order
documents with equal scores at random, the same on every machine.
"""

import numpy as np
from numpy.typing import NDArray

from mlfilter_core.compute.splitmix64 import numbers_of_rows
from mlfilter_core.filtering.survey import Survey

Ranks = NDArray[np.uint64]

ABOVE_ALL = 2**64 - 1  # no document has this rank: its score would be NaN
LOWEST = 1  # every document with a score has at least this rank
TIE_BITS = 32


def score_keys(values: NDArray[np.float32]) -> NDArray[np.uint32]:
    """Returns the upper bits of ranks: integers in the order of the values, uint32 (n,); 0 for NaN.

    A negative number is inverted, and the sign of another one (https://stereopsis.com/radix.html).
    """
    keys = (values + np.float32(0)).view(np.uint32)  # -0 becomes 0
    keys ^= (keys.view(np.int32) >> np.int32(31)).view(np.uint32) | np.uint32(1 << 31)
    keys[np.isnan(values)] = 0
    return keys


def ranks(survey: Survey, score: str, break_ties: bool = True) -> Ranks:
    """Returns the rank of each document of a file, uint64 (n,); 0 for a document without the score.

    Args:
        survey: The survey of the file.
        score: Name of the score.
        break_ties: Whether documents with equal scores get different ranks; otherwise they all get the lowest of them.
    """
    by_score = score_keys(survey.scores_of(score)).astype(np.uint64) << np.uint64(TIE_BITS)
    if not break_ties:
        return by_score
    rows = survey.first_row + np.arange(len(survey))
    return np.where(by_score > 0, by_score | tie_breaks(survey.stem, rows), by_score)


def tie_breaks(stem: str, rows: NDArray[np.int64]) -> Ranks:
    """Returns the lower bits of the ranks of some documents of a file, uint64 (n,), given their rows, int64 (n,)."""
    return numbers_of_rows(stem, rows) >> np.uint64(64 - TIE_BITS)


def lowest_rank_of(score: float) -> int:
    """Returns the lowest rank of the documents with a score."""
    return int(score_keys(np.array([score], np.float32))[0]) << TIE_BITS


def score_of(rank: int) -> float:
    """Returns the score of the documents with a rank."""
    key = rank >> TIE_BITS
    bits = key & 0x7FFFFFFF if key >> 31 else ~key & 0xFFFFFFFF
    return float(np.array(bits, np.uint32).view(np.float32))
