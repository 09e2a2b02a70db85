"""Which part each document falls into, by the hash of its text: equal texts into the same one, on every machine.

Whether a document is held out does not depend on the others, so that a larger corpus never trains on what a smaller one
held out. Folds do, and are as large as one another.
"""

import numpy as np
from numpy.typing import NDArray

HELD_OUT, FOLDS = 0, 1  # divisions that must not depend on one another


def is_held_out(hashes: NDArray[np.uint64], fraction: float, seed: int) -> NDArray[np.bool_]:
    """Tells which documents tell how good a head is, and take no part in its training.

    Args:
        hashes: uint64 (n,), of the texts.
        fraction: Their share, in the long run.
        seed: Of the division.

    Returns:
        bool (n,).
    """
    return _uniform(hashes, seed, HELD_OUT) < fraction


def fold_numbers(hashes: NDArray[np.uint64], n_folds: int, validation_fraction: float, seed: int) -> NDArray[np.int8]:
    """Returns the fold that leaves each document out of its training, or -1 where none does.

    Args:
        hashes: uint64 (n,), of the texts.
        n_folds: No more than there are different texts. With 1, `validation_fraction` of the texts are left out, in
            fold 0; one at least, and of several not all.
        validation_fraction: As above.
        seed: Of the division.

    Returns:
        int8 (n,).
    """
    texts, places = np.unique(_uniform(hashes, seed, FOLDS), return_inverse=True)
    if n_folds == 1:
        n_left_out = max(1, min(len(texts) - 1, round(validation_fraction * len(texts))))
        return np.where(places < n_left_out, 0, -1).astype(np.int8)
    return (places * n_folds // len(texts)).astype(np.int8)


def _uniform(hashes: NDArray[np.uint64], seed: int, division: int) -> NDArray[np.float64]:
    """Returns a number in [0, 1) for each hash: the mixing function of SplitMix64 (Steele, Lea and Flood, 2014)."""
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64
        mixed = hashes + np.uint64((2 * seed + division + 1) * 0x9E3779B97F4A7C15 % 2**64)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed = mixed ^ (mixed >> np.uint64(31))
    return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53
