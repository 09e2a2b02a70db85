from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mlfilter_core.config.training import HeadRecipe
from mlfilter_core.errors import TrainingError
from mlfilter_core.training.fit_head import FittedHead, TrainingSet, fit_head
from mlfilter_core.training.head_task import HeadTask
from mlfilter_core.training.row_buffers import RowBuffers, RowPlaces
from mlfilter_core.training.splits import fold_numbers
from tests.mlfilter_core.training.conftest import DIM, embeddings_of, label_of

N = 300
CPU = torch.device("cpu")
REGRESSION = HeadTask("regression", 1, ())
LINEAR = HeadRecipe(
    hidden_dims=(), dropout=0.0, learning_rate=0.02, weight_decay=0.0, batch_size=32, max_epochs=60, patience=10
)


def buffers(folder: Path, embeddings: NDArray[np.float32], max_bytes: int = 1 << 30) -> RowBuffers:
    with h5py.File(folder / "x.h5", "w") as file:
        file["train/embeddings"] = embeddings
    n = len(embeddings)
    return RowBuffers(RowPlaces((folder / "x.h5",), "train", np.zeros(n, np.int32), np.arange(n)), DIM, max_bytes)


def folds_of(n: int, n_folds: int) -> NDArray[np.int8]:
    return fold_numbers(np.arange(n, dtype=np.uint64), n_folds, 0.2, 0)


def fit(folder: Path, embeddings: NDArray[np.float32], targets: NDArray[np.float32], **other: Any) -> FittedHead:
    n_folds = other.pop("n_folds", 5)
    weights = other.pop("weights", np.ones(len(targets), np.float32))
    task = other.pop("task", REGRESSION)
    documents = TrainingSet(buffers(folder, embeddings), targets, weights, folds_of(len(targets), n_folds))
    return fit_head(documents, LINEAR.model_copy(update=other), task, CPU)


def outputs(head: FittedHead, embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
    hidden = torch.from_numpy(embeddings)
    for i, (weight, bias) in enumerate(zip(head.weights, head.biases, strict=True)):
        hidden = hidden @ weight.T + bias
        hidden = torch.relu(hidden) if i < len(head.weights) - 1 else hidden
    return hidden.numpy()


@pytest.mark.parametrize("n_folds", [1, 5])
def test_a_linear_head_learns_a_linear_label(tmp_path: Path, n_folds: int) -> None:
    embeddings = embeddings_of(N) * 0.1 + 3  # far from mean 0 and variance 1
    targets = label_of(embeddings)[:, None]
    head = fit(tmp_path, embeddings, targets, n_folds=n_folds)
    unseen = embeddings_of(50, seed=1) * 0.1 + 3
    np.testing.assert_allclose(outputs(head, unseen)[:, 0], label_of(unseen), atol=0.01)
    assert head.validation_loss[head.epochs - 1] == min(head.validation_loss)


def test_a_hidden_layer_learns_what_a_linear_head_cannot(tmp_path: Path) -> None:
    embeddings = embeddings_of(2 * N)
    targets = np.abs(embeddings[:, :1])
    losses = [
        min(fit(tmp_path, embeddings, targets, hidden_dims=dims, n_folds=1).validation_loss) for dims in ((), (64,))
    ]
    assert losses[1] < 0.3 * losses[0]


def test_several_targets_are_learnt_at_once(tmp_path: Path) -> None:
    embeddings = embeddings_of(N)
    targets = np.stack(
        [label_of(embeddings), 100 - 50 * embeddings[:, 0]], axis=1
    )  # the second target has another scale
    given = outputs(fit(tmp_path, embeddings, targets, task=HeadTask("regression", 2, ("a", "b"))), embeddings)
    np.testing.assert_allclose(given[:, 0], targets[:, 0], atol=0.05)
    np.testing.assert_allclose(given[:, 1], targets[:, 1], atol=1)


@pytest.mark.parametrize(("task", "n_outputs"), [("binary", 1), ("multiclass", 3)])
def test_classes_are_learnt(tmp_path: Path, task: str, n_outputs: int) -> None:
    embeddings = embeddings_of(N)
    classes = np.digitize(embeddings[:, 0], [0] if task == "binary" else [-0.5, 0.5]).astype(np.float32)
    given = outputs(fit(tmp_path, embeddings, classes[:, None], task=HeadTask(task, n_outputs, ())), embeddings)
    found = given[:, 0] > 0 if task == "binary" else given.argmax(axis=1)
    assert (found == classes).mean() > 0.9


def test_outputs_for_left_out_documents_come_from_models_that_did_not_see_them(tmp_path: Path) -> None:
    """Labels unrelated to the embeddings are memorised, and only by models that saw them."""
    embeddings, noise = embeddings_of(40), embeddings_of(40, seed=9)[:, :1]
    head = fit(tmp_path, embeddings, noise, hidden_dims=(256,), max_epochs=200, patience=200, learning_rate=0.01)
    assert abs(np.corrcoef(head.left_out[:, 0], noise[:, 0])[0, 1]) < 0.5
    one = fit(tmp_path, embeddings, noise, n_folds=1)
    assert (np.isnan(one.left_out[:, 0]) == (folds_of(40, 1) < 0)).all()


def test_training_stops_when_the_validation_loss_no_longer_falls(tmp_path: Path) -> None:
    embeddings, noise = embeddings_of(60), embeddings_of(60, seed=9)[:, :1]
    head = fit(tmp_path, embeddings, noise, hidden_dims=(256,), patience=4, learning_rate=0.01)
    assert len(head.validation_loss) == len(head.training_loss) == head.epochs + 4 < LINEAR.max_epochs


def test_rare_labels_count_as_much_as_their_weight(tmp_path: Path) -> None:
    embeddings = np.zeros((N, DIM), np.float32)  # uninformative: the best output is the weighted mean
    embeddings[:, 0] = np.linspace(-1e-3, 1e-3, N)
    targets = np.zeros((N, 1), np.float32)
    targets[::10] = 1
    weights = np.where(targets[:, 0] == 1, 9, 1).astype(np.float32)
    assert abs(outputs(fit(tmp_path, embeddings, targets), embeddings).mean() - 0.1) < 0.05
    assert abs(outputs(fit(tmp_path, embeddings, targets, weights=weights), embeddings).mean() - 0.5) < 0.05


def test_the_same_seed_gives_the_same_head(tmp_path: Path) -> None:
    embeddings = embeddings_of(N)
    targets = label_of(embeddings)[:, None]
    asked: dict[str, Any] = {"hidden_dims": (16,), "dropout": 0.5, "max_epochs": 3}
    first, second, other = (fit(tmp_path, embeddings, targets, **asked, seed=seed) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first.weights, second.weights, strict=True))
    assert not torch.equal(first.weights[0], other.weights[0])


def test_a_head_does_not_depend_on_the_state_of_torch_and_leaves_it(tmp_path: Path) -> None:
    embeddings = embeddings_of(N)
    targets = label_of(embeddings)[:, None]
    torch.manual_seed(1)
    first = fit(tmp_path, embeddings, targets, max_epochs=2)
    after = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(after, torch.rand(1))
    torch.manual_seed(2)
    assert torch.equal(first.weights[0], fit(tmp_path, embeddings, targets, max_epochs=2).weights[0])


def test_embeddings_that_do_not_fit_in_memory_are_learnt_from_too(tmp_path: Path) -> None:
    embeddings = embeddings_of(10_000)
    targets = label_of(embeddings)[:, None]
    rows = buffers(tmp_path, embeddings, max_bytes=5000 * 4 * DIM)
    documents = TrainingSet(rows, targets, np.ones(10_000, np.float32), folds_of(10_000, 1))
    head = fit_head(documents, LINEAR, REGRESSION, CPU)
    np.testing.assert_allclose(outputs(head, embeddings)[:, 0], targets[:, 0], atol=0.02)


def test_training_that_diverges_is_refused(tmp_path: Path) -> None:
    embeddings = embeddings_of(N)
    with pytest.raises(TrainingError, match=r"the loss is (nan|inf) after \d+ epochs; lower learning_rate, now 1e\+30"):
        fit(tmp_path, embeddings, label_of(embeddings)[:, None], learning_rate=1e30, hidden_dims=(8, 8))
