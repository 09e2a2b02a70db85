"""The direction of each document, computed without the code that clusters and deduplicates."""

import numpy as np
from numpy.typing import NDArray

from mlfilter_core.embedding_store.layout import CHUNK_ROWS
from mlfilter_core.embedding_store.reader import EmbeddingFile


def directions_of(embeddings: EmbeddingFile, rows: slice) -> NDArray[np.float64]:
    """Returns the directions of a slice of documents, float64 (n, dim), of unit length; zeros for one of zeros."""
    vectors = _unit(embeddings.embeddings(rows).astype(np.float64))
    return _unit(np.add.reduceat(vectors, embeddings.chunk_starts(rows))) if embeddings.has_chunks else vectors


def directions_at(embeddings: EmbeddingFile, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Returns the directions of some documents, float32 (n, dim); of the others, a few thousand are in memory.

    Args:
        embeddings: The file.
        rows: Their rows, ascending, int64 (n,).
    """
    found = np.zeros((len(rows), embeddings.dim), np.float32)
    for some in embeddings.slices(CHUNK_ROWS):
        start, stop = np.searchsorted(rows, [some.start, some.stop])
        if start < stop:
            found[start:stop] = directions_of(embeddings, some)[rows[start:stop] - some.start]
    return found


def _unit(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(lengths == 0, 1, lengths))
