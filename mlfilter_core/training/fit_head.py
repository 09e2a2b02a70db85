"""AdamW over labelled embeddings, with early stopping on the documents that folds leave out.

Knows nothing about files.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from mlfilter_core.config.training import HeadRecipe
from mlfilter_core.errors import TrainingError
from mlfilter_core.training.head_task import HeadTask
from mlfilter_core.training.row_buffers import Buffer, RowBuffers
from mlfilter_core.training.scaling import Scaling
from mlfilter_core.training.stacked_heads import StackedHeads

_log = logging.getLogger(__name__)

EVALUATION_ROWS = 8192  # per forward pass without gradients; arbitrary


@dataclass(frozen=True)
class TrainingSet:
    """The n documents that a head is trained on.

    Attributes:
        rows: Embeddings of the documents.
        targets: float32 (n, n_outputs) for a regression or several labels; otherwise (n, 1), indices of classes.
        weights: float32 (n,), weight of each document in the loss.
        folds: int8 (n,), fold that leaves the document out, or -1.
    """

    rows: RowBuffers
    targets: NDArray[np.float32]
    weights: NDArray[np.float32]
    folds: NDArray[np.int8]


@dataclass(frozen=True)
class FittedHead:
    """A chain of linear layers, with the course of its training.

    Attributes:
        weights: float32 (n_out, n_in) of each layer.
        biases: float32 (n_out,) of each layer.
        epochs: Epoch that the head is taken from, counted from 1.
        training_loss: Mean loss of each epoch over the documents trained on.
        validation_loss: Mean loss of each epoch over the documents left out; lowest at `epochs`.
        left_out: float32 (n, n_outputs), output for each document of a model that was trained without it; NaN where
            there is none.
    """

    weights: tuple[torch.Tensor, ...]
    biases: tuple[torch.Tensor, ...]
    epochs: int
    training_loss: tuple[float, ...]
    validation_loss: tuple[float, ...]
    left_out: NDArray[np.float32]


def fit_head(
    documents: TrainingSet,
    recipe: HeadRecipe,
    task: HeadTask,
    device: torch.device,
    on_epoch: Callable[[int], None] = lambda epoch: None,
) -> FittedHead:
    """Fits a head.

    One model for each fold is trained without the documents of the fold. With several folds, one more model is trained
    on all documents; it is the head, at the epoch at which the others had the lowest loss on the documents they did
    not see. With one fold, its model is the head.

    Args:
        documents: The documents to train on.
        recipe: Recipe of the training.
        task: Task of the head.
        device: Device to train on.
        on_epoch: Called after each epoch with the number of epochs so far.

    Raises:
        TrainingError: The loss became infinite or NaN.
    """
    n_folds = int(documents.folds.max()) + 1
    scaling = Scaling(documents.rows, documents.targets, task.kind)
    loss_of = _Loss(documents, scaling.targets(documents.targets), task.kind, device)
    rng = np.random.default_rng(recipe.seed)
    training_loss: list[float] = []
    validation_loss: list[float] = []
    best = _Best(-1, np.inf, [], [], np.empty(0, np.float32))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(recipe.seed)
        widths = (scaling.dim, *recipe.hidden_dims, task.n_outputs)
        models = StackedHeads(recipe, n_folds + (n_folds > 1), widths, device)
        for epoch in range(recipe.max_epochs):
            shuffled = map(scaling.embeddings, documents.rows.shuffled(rng))
            training_loss.append(_train(models, shuffled, loss_of, recipe.batch_size))
            loss, left_out = _validate(models, map(scaling.embeddings, documents.rows.in_order()), loss_of)
            if not np.isfinite(loss):
                raise TrainingError(
                    f"the loss is {loss} after {epoch + 1} epochs; lower learning_rate, now {recipe.learning_rate}"
                )
            validation_loss.append(loss)
            on_epoch(epoch + 1)
            if loss < best.loss:
                best = _Best(epoch, loss, *models.last(), left_out)
            elif epoch - best.epoch >= recipe.patience:
                break
    _log.info("%d epochs; best epoch %d, validation loss %.4f", len(training_loss), best.epoch + 1, best.loss)
    return FittedHead(
        *scaling.folded_into(best.weights, best.biases),
        epochs=best.epoch + 1,
        training_loss=tuple(training_loss),
        validation_loss=tuple(validation_loss),
        left_out=scaling.unscaled(best.left_out),
    )


@dataclass(frozen=True)
class _Best:
    epoch: int
    loss: float
    weights: list[torch.Tensor]
    biases: list[torch.Tensor]
    left_out: NDArray[np.float32]


class _Loss:
    """The loss of stacked heads, with the targets, weights and folds of the documents on the device."""

    def __init__(self, documents: TrainingSet, targets: NDArray[np.float32], task: str, device: torch.device) -> None:
        self._targets = torch.from_numpy(targets).to(device)
        self._task = task
        self.weights = torch.from_numpy(documents.weights).to(device)
        self.folds = torch.from_numpy(documents.folds).to(device)
        self.device = device

    def __call__(self, outputs: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Returns the losses, (n_models, n), of outputs (n_models, n, n_outputs) for the documents at n positions."""
        targets = self._targets[positions].expand(len(outputs), -1, -1)
        if self._task == "regression":
            return ((outputs - targets) ** 2).mean(dim=2)
        if self._task in ("binary", "multilabel"):
            return functional.binary_cross_entropy_with_logits(outputs, targets, reduction="none").mean(dim=2)
        return functional.cross_entropy(outputs.transpose(1, 2), targets[..., 0].long(), reduction="none")


def _batches(buffer: Buffer, n_rows: int, device: torch.device) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yields positions and embeddings, `n_rows` at a time."""
    positions, embeddings = (torch.from_numpy(array).to(device) for array in buffer)
    return zip(torch.split(positions, n_rows), torch.split(embeddings, n_rows), strict=True)


def _train(models: StackedHeads, buffers: Iterator[Buffer], loss_of: _Loss, batch_size: int) -> float:
    """Trains each model for one epoch, without the documents of its fold; returns the mean loss of the last model."""
    numbers = torch.arange(models.n_heads, device=loss_of.device)[:, None]
    total = torch.zeros(2, device=loss_of.device)
    for buffer in buffers:
        for batch, embeddings in _batches(buffer, batch_size, loss_of.device):
            losses = loss_of(models.outputs(embeddings, is_training=True), batch)
            seen = loss_of.weights[batch] * (loss_of.folds[batch] != numbers)
            sums, weights = (losses * seen).sum(dim=1), seen.sum(dim=1)
            models.step(sums / weights.clamp(min=1e-9))
            total += torch.stack([sums[-1], weights[-1]]).detach()
    return float(total[0] / total[1])


@torch.inference_mode()
def _validate(models: StackedHeads, buffers: Iterator[Buffer], loss_of: _Loss) -> tuple[float, NDArray[np.float32]]:
    """Returns the mean loss over the documents that folds leave out, and the outputs for them."""
    left_out: NDArray[np.float32] | None = None
    total, weight = 0.0, 0.0
    for buffer in buffers:
        for positions, embeddings in _batches(buffer, EVALUATION_ROWS, loss_of.device):
            outputs = models.outputs(embeddings, is_training=False)
            if left_out is None:
                left_out = np.full((len(loss_of.folds), outputs.shape[2]), np.nan, np.float32)
            chosen = torch.nonzero(loss_of.folds[positions] >= 0)[:, 0]
            positions = positions[chosen]
            unseen_by = loss_of.folds[positions].long()  # the model that was trained without the document
            losses, weights = loss_of(outputs[:, chosen], positions), loss_of.weights[positions]
            total += float((losses.gather(0, unseen_by[None])[0] * weights).sum())
            weight += float(weights.sum())
            left_out[positions.cpu().numpy()] = outputs[unseen_by, chosen].float().cpu().numpy()
    assert left_out is not None
    return total / weight, left_out
