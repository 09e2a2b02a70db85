import numpy as np
import pytest

from mlfilter_core.batching import plan_batches


def plan(lengths: list[int], max_documents: int, max_tokens: int) -> list[list[int]]:
    return [batch.tolist() for batch in plan_batches(np.array(lengths, np.int32), max_documents, max_tokens)]


def test_documents_of_about_equal_length_share_a_batch_the_longest_first() -> None:
    assert plan([2, 5, 1, 4], 64, 8) == [[1], [3, 0], [2]]


def test_equal_lengths_keep_their_order() -> None:
    assert plan([3, 3, 3, 3, 3], 2, 100) == [[0, 1], [2, 3], [4]]


def test_a_document_above_the_token_limit_makes_a_batch_of_its_own() -> None:
    assert plan([3, 50, 3, 40], 64, 10) == [[1], [3], [0, 2]]


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
