import numpy as np
import pytest
from numpy.typing import NDArray

from mlfilter_core.embedding_store.int8 import dequantize, quantize


@pytest.fixture
def embeddings() -> NDArray[np.float32]:
    made = np.random.default_rng(0).normal(size=(50, 384)).astype(np.float32)
    return made / np.linalg.norm(made, axis=1, keepdims=True)


def test_a_row_keeps_its_length_and_nearly_its_direction(embeddings: NDArray[np.float32]) -> None:
    found = dequantize(*quantize(embeddings))
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    assert (found * embeddings).sum(axis=1).min() > 0.9999


def test_rows_of_any_size_use_the_whole_range(embeddings: NDArray[np.float32]) -> None:
    sizes = np.float32([1e-30, 1e-3, 1, 1e3, 1e30])[:, None]
    whole, scales = quantize(embeddings[:5] * sizes)
    assert whole.dtype == np.int8
    assert np.abs(whole.astype(int)).max(axis=1).tolist() == [127] * 5
    np.testing.assert_allclose(dequantize(whole, scales) / sizes, dequantize(*quantize(embeddings[:5])), rtol=1e-5)


def test_a_row_of_zeros_stays_one_and_no_rows_are_none(embeddings: NDArray[np.float32]) -> None:
    embeddings[3] = 0
    whole, scales = quantize(embeddings)
    assert scales[3] == 0
    assert not dequantize(whole, scales)[3].any()
    assert [array.shape for array in quantize(embeddings[:0])] == [(0, 384), (0,)]


def test_a_row_does_not_depend_on_others(embeddings: NDArray[np.float32]) -> None:
    whole, scales = quantize(embeddings)
    for row in range(len(embeddings)):
        one, scale = quantize(embeddings[row : row + 1])
        np.testing.assert_array_equal(one[0], whole[row])
        assert scale[0] == scales[row]
