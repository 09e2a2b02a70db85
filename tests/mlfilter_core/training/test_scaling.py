from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from mlfilter_core.training.row_buffers import RowBuffers, RowPlaces
from mlfilter_core.training.scaling import Scaling
from tests.mlfilter_core.training.conftest import embeddings_of, label_of


@pytest.fixture
def rows(tmp_path: Path) -> RowBuffers:
    embeddings = 3 + 0.1 * embeddings_of(100)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["train/embeddings"] = embeddings
    places = RowPlaces((tmp_path / "x.h5",), "train", np.zeros(100, np.int32), np.arange(100))
    return RowBuffers(places, embeddings.shape[1], 1 << 30)


def test_a_head_of_scaled_embeddings_is_folded_into_one_of_the_original(rows: RowBuffers) -> None:
    targets = 100 + 7 * label_of(embeddings_of(100))[:, None]
    scaling = Scaling(rows, targets, "regression")
    (buffer,) = rows.in_order()
    scaled = scaling.embeddings(buffer).embeddings
    np.testing.assert_allclose(scaled.mean(axis=0), 0, atol=1e-4)
    assert scaled.var() == pytest.approx(1, abs=1e-3)
    np.testing.assert_allclose(scaling.unscaled(scaling.targets(targets)), targets, rtol=1e-5)
    weight, bias = torch.randn(1, scaling.dim, dtype=torch.float64), torch.randn(1, dtype=torch.float64)
    (folded,), (folded_bias,) = scaling.folded_into([weight], [bias])
    expected = scaling.unscaled(scaled @ weight.numpy().T + bias.numpy())
    np.testing.assert_allclose(buffer.embeddings @ folded.numpy().T + folded_bias.numpy(), expected, rtol=1e-4)


def test_classes_are_not_scaled(rows: RowBuffers) -> None:
    classes = np.arange(100, dtype=np.float32)[:, None] % 3
    assert Scaling(rows, classes, "multiclass").targets(classes).tolist() == classes.tolist()
