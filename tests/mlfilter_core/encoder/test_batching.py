import time
from collections.abc import Callable

import numpy as np
import pytest

from mlfilter_core.encoder.batching import LARGEST, PASSES, SMALLEST, UNTRIED, find_max_batch_tokens, plan_batches


def plan(lengths: list[int], max_documents: int | None, max_tokens: int) -> list[list[int]]:
    return [batch.tolist() for batch in plan_batches(np.array(lengths, np.int32), max_documents, max_tokens)]


def test_documents_of_one_length_share_a_batch_where_padding_matters() -> None:
    lengths = np.array([3, 2, 3, 3, 2, 1], np.int32)
    planned = plan_batches(lengths, None, 6, lengths)
    assert [batch.tolist() for batch in planned] == [[0, 2], [3], [1, 4], [5]]


def test_long_and_short_documents_have_batches_of_their_own_where_that_matters() -> None:
    lengths = np.array([30, 2, 9, 3, 11], np.int32)
    planned = plan_batches(lengths, None, 1000, lengths > 10)
    assert [batch.tolist() for batch in planned] == [[0, 4], [2, 3, 1]]


def test_documents_of_about_equal_length_share_a_batch_the_longest_first() -> None:
    assert plan([2, 5, 1, 4], 64, 8) == [[1], [3, 0], [2]]


def test_equal_lengths_keep_their_order() -> None:
    assert plan([3, 3, 3, 3, 3], 2, 100) == [[0, 1], [2, 3], [4]]


def test_a_document_above_the_token_limit_makes_a_batch_of_its_own() -> None:
    assert plan([3, 50, 3, 40], 64, 10) == [[1], [3], [0, 2]]


def test_without_a_limit_of_documents_only_their_tokens_count() -> None:
    assert plan([1] * 500, None, 1000) == [list(range(500))]


def test_no_documents_make_no_batches() -> None:
    assert plan([], 64, 10) == []


def test_a_document_without_tokens_is_in_a_batch_too() -> None:
    assert plan([0, 0, 0], 2, 10) == [[0, 1], [2]]


@pytest.mark.parametrize("seed", range(20))
def test_each_row_is_in_one_batch_within_both_limits(seed: int) -> None:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 60, rng.integers(1, 200))
    max_documents, max_tokens = int(rng.integers(1, 20)), int(rng.integers(1, 300))
    batches = plan_batches(lengths.astype(np.int32), max_documents, max_tokens)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) <= max_documents
        assert len(batch) == 1 or len(batch) * lengths[batch].max() <= max_tokens


class Clock:
    """A clock that runs only while something is encoded."""

    def __init__(self, seconds: Callable[[int], float], most_tokens: int) -> None:
        self.now = 0.0
        self.tried: list[int] = []
        self.seconds = seconds
        self._most_tokens = most_tokens

    def encode(self, n_tokens: int) -> int | None:
        self.tried.append(n_tokens)
        self.now += self.seconds(n_tokens)
        return n_tokens if n_tokens <= self._most_tokens else None


@pytest.mark.parametrize(
    ("seconds", "most_tokens", "chosen", "largest_tried"),
    [
        (lambda n: 1e-4 + n * 1e-8, 1 << 30, LARGEST, LARGEST),  # a GPU: larger batches are faster
        (lambda n: n * 1e-7, 1 << 30, SMALLEST, LARGEST),  # equal speeds: the smallest size is chosen
        (lambda n: n * (1e-6 if n <= 2048 else 2e-6), 1 << 30, SMALLEST, 4096),  # a CPU: slower beyond its cache
        (lambda n: 1e-3 + n * 1e-8, 10_000, 8192, 16384),  # larger sizes do not fit in memory
        (lambda n: 1e-3 + n * 1e-8, 100, SMALLEST, SMALLEST),  # no size fits in memory
        (lambda n: 0.5 + n * 1e-8, 1 << 30, 16384, 16384),  # too slow to try more sizes
        (lambda n: n * 3e-3, 1 << 30, UNTRIED, 1024),  # too slow to try a size twice
        (lambda n: n * 3e-3, 1024, UNTRIED, 1024),  # the same, and not known to fit
        (lambda n: 1.6 + n * 1e-3, 512, SMALLEST, 1024),  # known not to fit
        (lambda n: n * (1e-6 if n <= 512 else 2e-6), 1 << 30, SMALLEST, UNTRIED),  # a small cache
    ],
)
def test_the_size_taken_is_the_smallest_of_the_fastest(
    monkeypatch: pytest.MonkeyPatch, seconds: Callable[[int], float], most_tokens: int, chosen: int, largest_tried: int
) -> None:
    clock = Clock(seconds, most_tokens)
    monkeypatch.setattr(time, "perf_counter", lambda: clock.now)
    found, why = find_max_batch_tokens(clock.encode)
    assert (found, max(clock.tried)) == (chosen, largest_tried)
    assert ("does not fit in memory" in why) == (most_tokens < SMALLEST)
    assert len(clock.tried) <= PASSES * len(set(clock.tried))


def test_a_size_that_fits_no_more_in_a_later_pass_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(lambda n: 1e-3 + n * 1e-8, 1 << 30)

    def encode(n_tokens: int) -> int | None:
        encoded = clock.encode(n_tokens)
        return encoded if n_tokens < 8192 or clock.tried.count(n_tokens) == 1 else None

    monkeypatch.setattr(time, "perf_counter", lambda: clock.now)
    assert find_max_batch_tokens(encode)[0] == 4096


@pytest.mark.parametrize("pass_of_load", range(PASSES))
@pytest.mark.parametrize("slowdown", [1.5, 10])
def test_other_work_during_one_pass_does_not_decide(
    monkeypatch: pytest.MonkeyPatch, slowdown: float, pass_of_load: int
) -> None:
    """A processor that is fastest with 4,096 tokens, and slower from some trial of a pass on, until the pass ends."""
    quiet = Clock(lambda n: 1e-3 + n * (1e-6 if n <= 4096 else 2e-6), 1 << 30)
    monkeypatch.setattr(time, "perf_counter", lambda: quiet.now)
    assert find_max_batch_tokens(quiet.encode)[0] == 4096
    for first_slow in (512, 1024, 4096):
        clock = Clock(lambda n: 0.0, 1 << 30)

        def busy(n: int, clock: Clock = clock, first_slow: int = first_slow) -> float:
            is_in_pass = clock.tried.count(SMALLEST) == pass_of_load + 1 and n >= first_slow
            return (1e-3 + n * (1e-6 if n <= 4096 else 2e-6)) * (slowdown if is_in_pass else 1)

        clock.seconds = busy
        monkeypatch.setattr(time, "perf_counter", lambda clock=clock: clock.now)
        assert find_max_batch_tokens(clock.encode)[0] == 4096
