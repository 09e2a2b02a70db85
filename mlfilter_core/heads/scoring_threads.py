"""Scores of batches that come one after another, each piece of a batch on a core of its own.

PyTorch divides a product evenly among its threads, and each waits for the last: a core that also reads or writes would
hold up all others. Here, a core that has time takes the next piece.
"""

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from mlfilter_core.compute.stages import held_back
from mlfilter_core.heads.head import Head, score
from mlfilter_core.heads.layers import first_weight

# Enough for the full speed of a product, and few compared with a file. What is between layers fits a core's cache.
PIECE_ROWS = 512

Item = TypeVar("Item")


class ScoringThreads:
    """Scores embeddings on as many threads as PyTorch has in this one. Use it as a context manager.

    Heads on a GPU, and few embeddings, are scored in the caller's thread. While the threads start, new threads of this
    process would use one core.
    """

    def __init__(self, heads: Sequence[Head], n_embeddings: int, n_batches: int) -> None:
        """Starts the threads, as many as have work.

        Args:
            heads: Heads with the same device and dtype.
            n_embeddings: About the number of embeddings in all batches.
            n_batches: Number of batches.
        """
        self._heads = heads
        is_on_cpu = first_weight(heads[0].layers).device.type == "cpu"
        n_threads = min(torch.get_num_threads(), _n_pieces(n_embeddings)) if is_on_cpu else 1
        self._pool = _one_core_threads(n_threads) if n_threads > 1 else None
        # Batches, so that each thread has a piece.
        self._n_ahead = -(-n_threads // _n_pieces(n_embeddings // max(1, n_batches)))

    def __enter__(self) -> "ScoringThreads":
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def outputs(
        self, batches: Iterator[tuple[Item, NDArray[np.float32]]]
    ) -> Iterator[tuple[Item, NDArray[np.float32]]]:
        """Yields the outputs of `score` for each batch, in order, with what came with it.

        Args:
            batches: Embeddings, float32 (n, dim), each with anything. As many are taken ahead as the threads need.
        """
        pool = self._pool
        if pool is None:
            for item, embeddings in batches:
                yield item, score(self._heads, embeddings)
            return
        begun = ((item, [pool.submit(score, self._heads, piece) for piece in _pieces(rows)]) for item, rows in batches)
        for item, pieces in held_back(begun, self._n_ahead, in_order=True):
            yield item, np.concatenate([piece.result() for piece in pieces])


def _pieces(embeddings: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    return np.array_split(embeddings, _n_pieces(len(embeddings)))


def _n_pieces(n_rows: int) -> int:
    return max(1, -(-n_rows // PIECE_ROWS))


def _one_core_threads(n_threads: int) -> ThreadPoolExecutor:
    own = torch.get_num_threads()
    pool = ThreadPoolExecutor(n_threads, "scoring", initializer=_use_one_core)
    have_started = threading.Barrier(n_threads)
    try:
        list(pool.map(lambda _: have_started.wait(), range(n_threads)))
    except BaseException:  # no more threads to be had, for example
        have_started.abort()
        pool.shutdown(cancel_futures=True)
        raise
    finally:
        torch.set_num_threads(own)  # in this thread it was, but the last number is that of threads yet to begin
    return pool


def _use_one_core() -> None:
    torch.get_num_threads()  # the first call in a thread sets its number
    torch.set_num_threads(1)
