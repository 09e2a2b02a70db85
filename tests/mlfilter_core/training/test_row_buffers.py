from pathlib import Path

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from mlfilter_core.embedding_store.layout import CHUNK_ROWS
from mlfilter_core.training.row_buffers import RowBuffers, RowPlaces

DIM = 3
N_ROWS = (CHUNK_ROWS + 10, 7, 2 * CHUNK_ROWS)
KEEPS_ALL, KEEPS_A_CHUNK = 1 << 30, CHUNK_ROWS * 4 * DIM


@pytest.fixture
def places(tmp_path: Path) -> RowPlaces:
    """Every third row of three files; an embedding is its file and its row."""
    files = []
    for i, n in enumerate(N_ROWS):
        files.append(tmp_path / f"{i}.h5")
        with h5py.File(files[-1], "w") as file:
            file["train/embeddings"] = np.stack([np.full(n, i), np.arange(n), np.zeros(n)], axis=1).astype(np.float32)
    file_of = np.repeat(np.arange(3), N_ROWS).astype(np.int32)
    row_of = np.concatenate([np.arange(n) for n in N_ROWS])
    return RowPlaces(tuple(files), "train", file_of, row_of).select(row_of % 3 == 1)


def expected(places: RowPlaces) -> NDArray[np.float32]:
    return np.stack([places.file_of, places.row_of, np.zeros(len(places))], axis=1).astype(np.float32)


@pytest.mark.parametrize("max_bytes", [KEEPS_ALL, KEEPS_A_CHUNK, 1])
def test_every_row_comes_once_with_its_embedding(places: RowPlaces, max_bytes: int) -> None:
    rows = RowBuffers(places, DIM, max_bytes)
    rng = np.random.default_rng(0)
    for order in (rows.in_order(), rows.shuffled(rng), rows.shuffled(rng)):
        buffers = list(order)
        positions = np.concatenate([buffer.positions for buffer in buffers])
        assert sorted(positions.tolist()) == list(range(len(places)))
        np.testing.assert_array_equal(np.concatenate([b.embeddings for b in buffers]), expected(places)[positions])
        assert all(len(b.positions) <= max(max_bytes // (4 * DIM), CHUNK_ROWS) for b in buffers)
    assert np.concatenate([b.positions for b in rows.in_order()]).tolist() == list(range(len(places)))


def test_what_fits_in_memory_is_read_once(places: RowPlaces, tmp_path: Path) -> None:
    rows = RowBuffers(places, DIM, KEEPS_ALL)
    (buffer,) = rows.shuffled(np.random.default_rng(0))
    for path in places.files:
        path.unlink()
    (again,) = rows.in_order()
    np.testing.assert_array_equal(again.embeddings, expected(places))
    assert buffer.positions.tolist() != again.positions.tolist()


@pytest.mark.parametrize("max_bytes", [KEEPS_ALL, KEEPS_A_CHUNK])
def test_the_order_is_random_and_depends_on_the_seed(places: RowPlaces, max_bytes: int) -> None:
    def order(seed: int, n_before: int) -> list[int]:
        rows = RowBuffers(places, DIM, max_bytes)
        for _ in range(n_before):
            list(rows.in_order())
        shuffled = rows.shuffled(np.random.default_rng(seed))
        return [position for buffer in shuffled for position in buffer.positions.tolist()]

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(1, 0)
    assert order(0, 0) != sorted(order(0, 0))


def test_no_rows_give_no_buffers(places: RowPlaces) -> None:
    rows = RowBuffers(places.select(np.zeros(len(places), bool)), DIM, KEEPS_ALL)
    assert list(rows.in_order()) == []
