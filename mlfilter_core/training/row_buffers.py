"""Embeddings of chosen rows, in buffers that fit in memory.

Knows nothing about labels.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlfilter_core.embedding_store.layout import CHUNK_ROWS
from mlfilter_core.embedding_store.reader import EmbeddingFile


@dataclass(frozen=True)
class RowPlaces:
    """Where rows lie.

    Attributes:
        files: Files of embeddings.
        group: Name of their HDF5 group.
        file_of: int32 (n,), place in `files`; ascending.
        row_of: int64 (n,), row in that file; ascending within it.
    """

    files: tuple[Path, ...]
    group: str
    file_of: NDArray[np.int32]
    row_of: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.row_of)

    def select(self, chosen: NDArray[np.bool_]) -> "RowPlaces":
        """Returns some of them."""
        return RowPlaces(self.files, self.group, self.file_of[chosen], self.row_of[chosen])

    def blocks(self) -> list[NDArray[np.int64]]:
        """Returns the positions of the rows of each chunk of each file, in their order."""
        chunk_of = self.row_of // CHUNK_ROWS
        starts_new = (np.diff(self.file_of) != 0) | (np.diff(chunk_of) != 0)
        return [block for block in np.split(np.arange(len(self)), np.flatnonzero(starts_new) + 1) if len(block)]


class Buffer(NamedTuple):
    """Embeddings, float32 (m, dim), of the rows at `positions`, int64 (m,), among all."""

    positions: NDArray[np.int64]
    embeddings: NDArray[np.float32]


class RowBuffers:
    """Reads the embeddings of rows again and again. They are kept where all of them fit in one buffer."""

    def __init__(self, places: RowPlaces, dim: int, max_bytes: int) -> None:
        """Plans the reading.

        Args:
            places: Of the rows.
            dim: Width of the embeddings.
            max_bytes: Of a buffer; one block of rows is read in any case.
        """
        self._places = places
        self._blocks = places.blocks()
        self._max_rows = max(1, max_bytes // (4 * dim))
        self._kept: Buffer | None = None

    def in_order(self) -> Iterator[Buffer]:
        """Yields all rows once, in their order."""
        yield from self._buffers(self._blocks)

    def shuffled(self, rng: np.random.Generator) -> Iterator[Buffer]:
        """Yields all rows once, in random order; where they do not fit in memory, of chunks and within each buffer."""
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
                # In the order of the rows, whatever order they were read in: the same seed then gives the same head.
                order = np.argsort(buffer.positions)
                buffer = self._kept = Buffer(buffer.positions[order], buffer.embeddings[order])
            yield buffer

    def _read(self, blocks: list[NDArray[np.int64]]) -> Buffer:
        return Buffer(np.concatenate(blocks), np.concatenate([self._read_block(block) for block in blocks]))

    def _read_block(self, positions: NDArray[np.int64]) -> NDArray[np.float32]:
        rows = self._places.row_of[positions]
        first = int(rows[0])
        with EmbeddingFile(self._places.files[self._places.file_of[positions[0]]], self._places.group) as file:
            return file.embeddings(slice(first, int(rows[-1]) + 1))[rows - first]
