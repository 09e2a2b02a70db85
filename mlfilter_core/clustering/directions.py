"""The direction of each document: its embedding, or the mean of those of its chunks, at unit length."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from mlfilter_core.embedding_store.reader import EmbeddingFile
from mlfilter_core.errors import EmbeddingFileError

READ_ROWS = 8192
SMALL, LARGE = 1e-15, 1e15  # lengths between these are exact; squares of others vanish or overflow


def directions(file: EmbeddingFile) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """Yields some documents of a file at a time, in order, with their directions.

    Yields:
        Rows, and float32 (n, dim), of unit length; zeros for an embedding of zeros.

    Raises:
        EmbeddingFileError: An embedding is not finite, or cannot be read.
    """
    for rows in file.slices(READ_ROWS):
        vectors = _unit(file, rows, file.embeddings(rows))
        if file.has_chunks:
            vectors = _unit(file, rows, np.add.reduceat(vectors, file.chunk_starts(rows)))
        yield rows, vectors


def _unit(file: EmbeddingFile, rows: slice, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
    if lengths.min(initial=LARGE) > SMALL and lengths.max(initial=0) < LARGE:
        return np.asarray(vectors / lengths[:, None])
    largest = np.abs(vectors).max(axis=1, keepdims=True)
    if not np.isfinite(largest).all():
        raise EmbeddingFileError(
            f"{file.path}: an embedding of rows {rows.start} to {rows.stop - 1} is not finite; embed its source again"
        )
    scaled = vectors / np.where(largest == 0, 1, largest)
    lengths = np.linalg.norm(scaled, axis=1)
    return np.asarray(scaled / np.where(lengths == 0, 1, lengths)[:, None], np.float32)
