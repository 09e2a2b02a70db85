"""Embeddings of chosen rows, in buffers that fit in memory.

Knows nothing about labels.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlfilter_core.embedding_store.layout import CHUNK_ROWS
from mlfilter_core.embedding_store.reader import EmbeddingFile


@dataclass(frozen=True)
class RowPlaces:
    """The places of n rows in files of embeddings.

    Attributes:
        files: Files of embeddings.
        group: Name of their HDF5 group.
        file_of: int32 (n,), index in `files`; ascending.
        row_of: int64 (n,), row in that file; ascending within each file.
    """

    files: tuple[Path, ...]
    group: str
    file_of: NDArray[np.int32]
    row_of: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.row_of)

    def select(self, chosen: NDArray[np.bool_]) -> "RowPlaces":
        """Returns the places of the chosen rows, bool (n,)."""
        return RowPlaces(self.files, self.group, self.file_of[chosen], self.row_of[chosen])

    @contextmanager
    def open_block(self, positions: NDArray[np.int64]) -> Iterator[tuple[EmbeddingFile, slice, NDArray[np.int64]]]:
        """Opens the file of a block.

        Yields:
            The file, the slice of it that contains the block, and the rows of the block within that slice.
        """
        rows = self.row_of[positions]
        first = int(rows[0])
        with EmbeddingFile(self.files[self.file_of[positions[0]]], self.group) as file:
            yield file, slice(first, int(rows[-1]) + 1), rows - first

    def blocks(self) -> list[NDArray[np.int64]]:
        """Returns blocks of positions in 0..n-1, in order: the rows of each HDF5 chunk of each file."""
        chunk_of = self.row_of // CHUNK_ROWS
        starts_new = (np.diff(self.file_of) != 0) | (np.diff(chunk_of) != 0)
        return [block for block in np.split(np.arange(len(self)), np.flatnonzero(starts_new) + 1) if len(block)]


class Buffer(NamedTuple):
    """Some of n rows: their positions in 0..n-1, int64 (m,), and their embeddings, float32 (m, dim)."""

    positions: NDArray[np.int64]
    embeddings: NDArray[np.float32]


class RowBuffers:
    """Reads the embeddings of rows repeatedly; keeps them in memory if all fit in one buffer."""

    def __init__(self, places: RowPlaces, dim: int, max_bytes: int) -> None:
        """Plans the reading.

        Args:
            places: Places of the rows.
            dim: Width of the embeddings.
            max_bytes: Size of a buffer; a buffer contains at least one block.
        """
        self._places = places
        self._blocks = places.blocks()
        self._max_rows = max(1, max_bytes // (4 * dim))
        self._kept: Buffer | None = None

    def in_order(self) -> Iterator[Buffer]:
        """Yields all rows once, in order."""
        yield from self._buffers(self._blocks)

    def shuffled(self, rng: np.random.Generator) -> Iterator[Buffer]:
        """Yields all rows once, shuffled; if they do not fit in memory, the blocks and the rows of a buffer are."""
        blocks = [self._blocks[i] for i in rng.permutation(len(self._blocks))]
        for positions, embeddings in self._buffers(blocks):
            order = rng.permutation(len(positions))
            yield Buffer(positions[order], embeddings[order])

    def _buffers(self, blocks: list[NDArray[np.int64]]) -> Iterator[Buffer]:
        if self._kept is not None:
            yield self._kept
            return
        full: list[NDArray[np.int64]] = []
        n_rows = 0
        for block in blocks:
            if full and n_rows + len(block) > self._max_rows:
                yield self._read(full)
                full, n_rows = [], 0
            full.append(block)
            n_rows += len(block)
        if full:
            buffer = self._read(full)
            if len(full) == len(self._blocks):
                # Kept in row order, independent of the reading order, so that the same seed gives the same head.
                order = np.argsort(buffer.positions)
                buffer = self._kept = Buffer(buffer.positions[order], buffer.embeddings[order])
            yield buffer

    def _read(self, blocks: list[NDArray[np.int64]]) -> Buffer:
        return Buffer(np.concatenate(blocks), np.concatenate([self._read_block(block) for block in blocks]))

    def _read_block(self, positions: NDArray[np.int64]) -> NDArray[np.float32]:
        with self._places.open_block(positions) as (file, rows, chosen):
            embeddings: NDArray[np.float32] = file.embeddings(rows)[chosen]
        return embeddings
