"""Buckets of neighbouring cells, whose documents are compared in one task.

A document that visits several cells of a bucket is read once for them, so that neighbours belong together.
"""

import numpy as np
from numpy.typing import NDArray

# Enough buckets to balance workers, and enough documents in each to be worth a task. Arbitrary.
LEAST_BUCKETS, LEAST_DOCUMENTS = 64, 10_000
POWER_STEPS, TINY = 20, 1e-30


def buckets_of(centres: NDArray[np.float32], documents: NDArray[np.int64], most_documents: float) -> NDArray[np.int64]:
    """Returns the bucket of each cell, int64 (k,), counted from 0.

    They are halved along the direction in which their centres differ most, until each bucket has few enough documents
    or is a single cell.

    Args:
        centres: Centres of the cells, float32 (k, dim).
        documents: Documents of each cell, int64 (k,).
        most_documents: Most documents of a bucket.
    """
    most = min(most_documents, max(LEAST_DOCUMENTS, float(documents.sum()) / LEAST_BUCKETS))
    buckets = np.empty(len(centres), np.int64)
    waiting, n_buckets = [np.arange(len(centres))], 0
    while waiting:
        cells = waiting.pop()
        if len(cells) == 1 or documents[cells].sum() <= most:
            buckets[cells] = n_buckets
            n_buckets += 1
            continue
        centred = centres[cells] - centres[cells].mean(axis=0)
        ordered = cells[np.argsort(centred @ _main_direction(centred), kind="stable")]
        before = np.cumsum(documents[ordered]) - documents[ordered] / 2
        cut = int(np.searchsorted(before, documents[ordered].sum() / 2))
        cut = min(max(1, cut), len(ordered) - 1)
        waiting += [ordered[cut:], ordered[:cut]]
    return buckets


def _main_direction(centred: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns about the direction in which rows differ most, by power iteration from the longest row."""
    direction = centred[np.einsum("ij,ij->i", centred, centred).argmax()]
    for _ in range(POWER_STEPS):
        direction = direction / max(float(np.linalg.norm(direction)), TINY)
        direction = centred.T @ (centred @ direction)
    return np.asarray(direction)
