"""The split of documents into held-out documents and folds, by the hash of their texts.

Documents with equal texts always fall into the same part. Whether a document is held out does not depend on the other
documents, so a head for a larger corpus never trains on what was held out of a smaller one. Folds do depend on them,
and have equal sizes.
"""

import numpy as np
from numpy.typing import NDArray

from mlfilter_core.compute.splitmix64 import GAMMA, mix64

HELD_OUT, FOLDS = 0, 1  # independent splits


def is_held_out(hashes: NDArray[np.uint64], fraction: float, seed: int) -> NDArray[np.bool_]:
    """Returns which documents are held out for evaluation, bool (n,).

    Args:
        hashes: uint64 (n,), hashes of the texts.
        fraction: Expected share of the held-out texts.
        seed: Seed of the split.
    """
    return _uniform(hashes, seed, HELD_OUT) < fraction


def fold_numbers(hashes: NDArray[np.uint64], n_folds: int, validation_fraction: float, seed: int) -> NDArray[np.int8]:
    """Returns the fold that leaves each document out of training, int8 (n,); -1 where none does.

    Args:
        hashes: uint64 (n,), hashes of the texts.
        n_folds: Number of folds, at most the number of distinct texts. A single fold leaves out `validation_fraction`
            of the texts, at least one of them and, of several, not all.
        validation_fraction: Share of the texts that a single fold leaves out.
        seed: Seed of the split.
    """
    texts, places = np.unique(_uniform(hashes, seed, FOLDS), return_inverse=True)
    if n_folds == 1:
        n_left_out = max(1, min(len(texts) - 1, round(validation_fraction * len(texts))))
        return np.where(places < n_left_out, 0, -1).astype(np.int8)
    return (places * n_folds // len(texts)).astype(np.int8)


def _uniform(hashes: NDArray[np.uint64], seed: int, split: int) -> NDArray[np.float64]:
    """Returns a pseudorandom number in [0, 1) for each hash."""
    mixed = mix64(hashes + np.uint64((2 * seed + split + 1) * GAMMA % 2**64))
    return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53
