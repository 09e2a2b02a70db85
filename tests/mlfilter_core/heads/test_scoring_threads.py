import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mlfilter_core.heads.head import Head, score
from mlfilter_core.heads.layers import mlp
from mlfilter_core.heads.scoring_threads import PIECE_ROWS, ScoringThreads
from tests.conftest import torch_threads

DIM = 48


@pytest.fixture(params=[1, 3])
def n_threads(request: pytest.FixtureRequest) -> Iterator[int]:
    with torch_threads(request.param):
        yield request.param


@pytest.fixture
def heads() -> list[Head]:
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(size, generator=generator) for size in ((64, DIM), (2, 64), (3, DIM))]
    zeros = [torch.zeros(len(weight)) for weight in weights]
    return [
        Head("deep", mlp(weights[:2], zeros[:2], "gelu"), {}),
        Head("flat", mlp(weights[2:], zeros[2:], "relu"), {}),
    ]


def batches(*sizes: int) -> list[tuple[int, NDArray[np.float32]]]:
    generator = np.random.default_rng(0)
    return [(i, generator.standard_normal((size, DIM), np.float32)) for i, size in enumerate(sizes)]


def test_batches_have_the_outputs_of_each_alone_in_order(n_threads: int, heads: list[Head]) -> None:
    given = batches(1, 5 * PIECE_ROWS + 7, PIECE_ROWS, 3, *[PIECE_ROWS + 1] * 20)
    with ScoringThreads(heads, 100 * PIECE_ROWS, 100) as scoring:
        found = list(scoring.outputs(iter(given)))
    assert [number for number, _ in found] == list(range(len(given)))
    for (_, embeddings), (_, outputs) in zip(given, found, strict=True):
        np.testing.assert_allclose(outputs, score(heads, embeddings), atol=1e-5)


def test_no_batches_have_no_outputs(n_threads: int, heads: list[Head]) -> None:
    with ScoringThreads(heads, 100 * PIECE_ROWS, 100) as scoring:
        assert list(scoring.outputs(iter(()))) == []


def test_pieces_are_scored_at_the_same_time_each_on_one_core(
    heads: list[Head], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each product waits for the others: one after another, they would wait for ever."""
    meeting = threading.Barrier(3, timeout=30)
    used: list[int] = []

    def met(inputs: torch.Tensor, *others: Any) -> torch.Tensor:
        meeting.wait()
        used.append(torch.get_num_threads())
        return inputs[:, :1]

    for head in heads:
        monkeypatch.setitem(head.__dict__, "functions", [met])
    with torch_threads(3):
        with ScoringThreads(heads, 100 * PIECE_ROWS, 100) as scoring:
            list(scoring.outputs(iter(batches(3 * PIECE_ROWS))))
        assert used == [1] * 6
        assert torch.get_num_threads() == 3
        assert in_a_new_thread() == 3, "threads of later work are not held to one core"


def in_a_new_thread() -> int:
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    return found[0]


def test_an_error_ends_the_threads(n_threads: int, heads: list[Head]) -> None:
    (good,) = batches(PIECE_ROWS)
    wide = np.zeros((PIECE_ROWS, DIM + 1), np.float32)
    with pytest.raises(RuntimeError), ScoringThreads(heads, 100 * PIECE_ROWS, 100) as scoring:
        list(scoring.outputs(iter([good, (1, wide), *batches(*[PIECE_ROWS] * 50)])))
    assert not any(thread.name.startswith("scoring") for thread in threading.enumerate())


def test_no_thread_is_started_for_few_embeddings(heads: list[Head]) -> None:
    before = threading.active_count()
    with ScoringThreads(heads, PIECE_ROWS, 3) as scoring:
        assert threading.active_count() == before
        assert len(list(scoring.outputs(iter(batches(5, 7, 3))))) == 3


def test_a_thread_that_cannot_start_ends_the_others(
    n_threads: int, heads: list[Head], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit of processes is reached; the others would wait for it for ever."""
    before, start = threading.active_count(), threading.Thread.start

    def fail_at_the_last(thread: threading.Thread) -> None:
        if threading.active_count() - before == n_threads - 1:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", fail_at_the_last)
    if n_threads == 1:
        ScoringThreads(heads, 100 * PIECE_ROWS, 100)
        return
    with pytest.raises(RuntimeError, match="can't start new thread"):
        ScoringThreads(heads, 100 * PIECE_ROWS, 100)
    assert threading.active_count() == before
    assert torch.get_num_threads() == n_threads
