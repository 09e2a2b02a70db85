"""Embeddings as int8 with a scale for each row, a quarter of float32.

A scale for each row needs no second pass over the corpus, as one for each dimension would, and no row depends on
another.
"""

import numpy as np
from numpy.typing import NDArray

LARGEST = 127


def quantize(embeddings: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Returns whole numbers and the scale of each row.

    The largest value of a row becomes 127 or -127. The scale is chosen so that the row keeps its length, so normalised
    embeddings stay normalised.

    Args:
        embeddings: float32 (n, dim), finite.

    Returns:
        int8 (n, dim) and float32 (n,); embeddings are about their product. A row of zeros has the scale 0.
    """
    wide = embeddings.astype(np.float64)
    largest = np.abs(wide).max(axis=1, initial=0, keepdims=True)
    whole = np.rint(wide / np.where(largest == 0, 1, largest) * LARGEST)
    lengths = np.linalg.norm(whole, axis=1)
    scales = np.linalg.norm(wide, axis=1) / np.where(lengths == 0, 1, lengths)
    return whole.astype(np.int8), scales.astype(np.float32)


def dequantize(whole: NDArray[np.int8], scales: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns float32 (n, dim) from the results of `quantize`."""
    return whole.astype(np.float32) * scales[:, None]
