"""AdamW over labelled embeddings, with early stopping where documents that were left out say so.

Knows nothing about files.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from mlfilter_core.compute.linear import ACTIVATIONS
from mlfilter_core.errors import TrainingError
from mlfilter_core.training.row_buffers import Buffer, RowBuffers

_log = logging.getLogger(__name__)

EVALUATION_ROWS = 8192  # of a forward pass without gradients; arbitrary


@dataclass(frozen=True)
class FitSettings:
    """How a head is fitted; the fields are those of `mlfilter_core.config.training.HeadRecipe`."""

    task: str
    n_outputs: int
    hidden_dims: tuple[int, ...]
    activation: str
    dropout: float
    learning_rate: float
    weight_decay: float
    batch_size: int
    max_epochs: int
    patience: int
    seed: int


@dataclass(frozen=True)
class FittedHead:
    """A chain of linear layers, and how it came about.

    Attributes:
        weights: float32 (n_out, n_in) of each layer.
        biases: float32 (n_out,) of each layer.
        epochs: Those that it was trained for.
        training_loss: Of each epoch that was run, over all documents.
        validation_loss: Of each epoch, over the documents that a fold left out; lowest at `epochs`.
        left_out: float32 (n, n_outputs), what the model that did not see a document gives for it; NaN where all saw it.
    """

    weights: tuple[torch.Tensor, ...]
    biases: tuple[torch.Tensor, ...]
    epochs: int
    training_loss: tuple[float, ...]
    validation_loss: tuple[float, ...]
    left_out: NDArray[np.float32]


def fit_head(
    rows: RowBuffers,
    targets: NDArray[np.float32],
    weights: NDArray[np.float32],
    folds: NDArray[np.int8],
    settings: FitSettings,
    device: torch.device,
    told: Callable[[int], None] = lambda epoch: None,
) -> FittedHead:
    """Fits a head.

    For each fold a model is trained without its documents, all of them side by side, and one more on all documents,
    where there are several folds. That one is the head, as it was in the epoch in which the others did best on what
    they had not seen. With one fold, the one model is the head.

    Args:
        rows: Embeddings of n documents.
        targets: float32 (n, n_outputs) of a regression; (n, 1) of 0 and 1; (n, 1) of the numbers of classes.
        weights: float32 (n,), what each document weighs in the loss.
        folds: int8 (n,), the fold that leaves each document out, or -1.
        settings: How.
        device: Where.
        told: Called with the number of epochs after each.

    Raises:
        TrainingError: The loss became infinite or NaN.
    """
    n_folds = int(folds.max()) + 1
    scaling = _Scaling(rows, targets, settings.task)
    documents = _Documents(scaling.targets, weights, folds, settings, device)
    rng = np.random.default_rng(settings.seed)
    training_loss: list[float] = []
    validation_loss: list[float] = []
    best = _Best(-1, np.inf, [], [], np.empty(0, np.float32))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(settings.seed)
        models = _Models(settings, n_folds + (n_folds > 1), scaling.dim, device)
        for epoch in range(settings.max_epochs):
            training_loss.append(_train(models, map(scaling.scaled, rows.shuffled(rng)), documents, settings))
            loss, left_out = _validate(models, map(scaling.scaled, rows.in_order()), documents)
            if not np.isfinite(loss):
                raise TrainingError(
                    f"the loss is {loss} after {epoch + 1} epochs; lower learning_rate, {settings.learning_rate} now"
                )
            validation_loss.append(loss)
            told(epoch + 1)
            if loss < best.loss:
                best = _Best(epoch, loss, *models.last(), left_out)
            elif epoch - best.epoch >= settings.patience:
                break
    _log.info("%d epochs, the best is number %d: validation loss %.4f", len(training_loss), best.epoch + 1, best.loss)
    layer_weights, biases = scaling.folded_into(best.weights, best.biases)
    return FittedHead(
        *(layer_weights, biases, best.epoch + 1, tuple(training_loss), tuple(validation_loss)),
        scaling.unscaled(best.left_out),
    )


@dataclass(frozen=True)
class _Best:
    epoch: int
    loss: float
    weights: list[torch.Tensor]
    biases: list[torch.Tensor]
    left_out: NDArray[np.float32]


class _Models:
    """Several heads of one shape, side by side in tensors of one more dimension: they take one step in one go.

    AdamW goes element by element, so that each takes the steps that it would take alone.
    """

    def __init__(self, settings: FitSettings, n_models: int, dim: int, device: torch.device) -> None:
        widths = (dim, *settings.hidden_dims, settings.n_outputs)
        self._weights, self._biases = [], []
        for n_in, n_out in pairwise(widths):  # as torch.nn.Linear begins
            bound = n_in**-0.5
            self._weights.append(torch.empty(n_models, n_in, n_out, device=device).uniform_(-bound, bound))
            self._biases.append(torch.empty(n_models, 1, n_out, device=device).uniform_(-bound, bound))
        self.n_models = n_models
        self._activate = ACTIVATIONS[settings.activation]
        self._dropout = settings.dropout
        parameters = [parameter.requires_grad_() for parameter in (*self._weights, *self._biases)]
        self.optimizer = torch.optim.AdamW(
            parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=device.type != "mps"
        )

    def outputs(self, inputs: torch.Tensor, is_training: bool) -> torch.Tensor:
        """Returns (n_models, n, n_outputs) for (n, dim)."""
        hidden = inputs.expand(self.n_models, *inputs.shape)
        for i, (weight, bias) in enumerate(zip(self._weights, self._biases, strict=True)):
            if i:
                hidden = functional.dropout(self._activate(hidden), self._dropout, is_training)
            hidden = torch.baddbmm(bias, hidden, weight)
        return hidden

    def last(self) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Returns copies of the last model's weights, (n_out, n_in) of each layer, and biases, (n_out,)."""
        weights = [weight.detach()[-1].T.double().cpu() for weight in self._weights]
        return weights, [bias.detach()[-1, 0].double().cpu() for bias in self._biases]


class _Scaling:
    """Embeddings and the targets of a regression with mean 0 and variance 1, and the way back.

    All dimensions of an embedding are divided by the same number: their proportions are the encoder's, and some are
    constant.
    """

    def __init__(self, rows: RowBuffers, targets: NDArray[np.float32], task: str) -> None:
        n, total, squares = 0, np.zeros(1), np.zeros(1)
        for _, embeddings in rows.in_order():
            wide = embeddings.astype(np.float64)
            n, total, squares = n + len(wide), total + wide.sum(axis=0), squares + (wide**2).sum(axis=0)
        self.mean = total / n
        self.deviation = float(np.sqrt(np.mean(squares / n - self.mean**2))) or 1.0
        self.dim = len(self.mean)
        is_regression = task == "regression"
        self.target_mean = targets.mean(axis=0, dtype=np.float64) if is_regression else np.zeros(1)
        self.target_deviation = targets.std(axis=0, dtype=np.float64) if is_regression else np.ones(1)
        self.targets = ((targets - self.target_mean) / self.target_deviation).astype(np.float32)

    def scaled(self, buffer: Buffer) -> Buffer:
        return Buffer(buffer.positions, np.asarray((buffer.embeddings - self.mean) / self.deviation, np.float32))

    def unscaled(self, outputs: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(outputs * self.target_deviation + self.target_mean, np.float32)

    def folded_into(
        self, weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor]
    ) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
        """Returns float32 weights and biases that take embeddings, and give targets, as they are."""
        weights, biases = list(weights), list(biases)
        weights[0] = weights[0] / self.deviation
        biases[0] = biases[0] - weights[0] @ torch.from_numpy(self.mean)
        deviation, mean = torch.from_numpy(self.target_deviation), torch.from_numpy(self.target_mean)
        weights[-1], biases[-1] = weights[-1] * deviation[:, None], biases[-1] * deviation + mean
        return tuple(weight.float() for weight in weights), tuple(bias.float() for bias in biases)


class _Documents:
    """What is known of the documents, besides their embeddings."""

    def __init__(
        self,
        targets: NDArray[np.float32],
        weights: NDArray[np.float32],
        folds: NDArray[np.int8],
        settings: FitSettings,
        device: torch.device,
    ) -> None:
        self._targets = torch.from_numpy(targets).to(device)
        self.weights = torch.from_numpy(weights).to(device)
        self.folds = torch.from_numpy(folds).to(device)
        self._task = settings.task
        self.device = device

    def losses(self, outputs: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Returns the loss of each model, (n_models, n), at outputs (n_models, n, n_outputs) for some documents."""
        targets = self._targets[positions].expand(len(outputs), -1, -1)
        if self._task == "regression":
            return ((outputs - targets) ** 2).mean(dim=2)
        if self._task == "binary":
            return functional.binary_cross_entropy_with_logits(outputs, targets, reduction="none")[..., 0]
        return functional.cross_entropy(outputs.transpose(1, 2), targets[..., 0].long(), reduction="none")


def _train(models: _Models, buffers: Iterator[Buffer], documents: _Documents, settings: FitSettings) -> float:
    """Trains each model on the documents that its fold does not leave out; returns the mean loss of the last."""
    numbers = torch.arange(models.n_models, device=documents.device)[:, None]
    total = torch.zeros(2, device=documents.device)
    for positions, embeddings in buffers:
        places, inputs = (torch.from_numpy(array).to(documents.device) for array in (positions, embeddings))
        for start in range(0, len(places), settings.batch_size):
            batch = places[start : start + settings.batch_size]
            losses = documents.losses(models.outputs(inputs[start : start + settings.batch_size], True), batch)
            seen = documents.weights[batch] * (documents.folds[batch] != numbers)
            sums, weights = (losses * seen).sum(dim=1), seen.sum(dim=1)
            models.optimizer.zero_grad(set_to_none=True)
            (sums / weights.clamp(min=1e-9)).sum().backward()  # type: ignore[no-untyped-call]
            models.optimizer.step()
            total += torch.stack([sums[-1], weights[-1]]).detach()
    return float(total[0] / total[1])


@torch.inference_mode()
def _validate(models: _Models, buffers: Iterator[Buffer], documents: _Documents) -> tuple[float, NDArray[np.float32]]:
    """Returns the mean loss over the documents that a fold leaves out, and what its model gives for them."""
    left_out: NDArray[np.float32] | None = None
    total, weight = 0.0, 0.0
    for positions, embeddings in buffers:
        for start in range(0, len(positions), EVALUATION_ROWS):
            part = slice(start, start + EVALUATION_ROWS)
            places = torch.from_numpy(positions[part]).to(documents.device)
            outputs = models.outputs(torch.from_numpy(embeddings[part]).to(documents.device), False)
            if left_out is None:
                left_out = np.full((len(documents.folds), outputs.shape[2]), np.nan, np.float32)
            chosen = torch.nonzero(documents.folds[places] >= 0)[:, 0]
            places = places[chosen]
            # Of each document, the model that did not see it.
            model = documents.folds[places].long()
            losses, weights = documents.losses(outputs[:, chosen], places), documents.weights[places]
            total += float((losses.gather(0, model[None])[0] * weights).sum())
            weight += float(weights.sum())
            left_out[places.cpu().numpy()] = outputs[model, chosen].float().cpu().numpy()
    assert left_out is not None
    return total / weight, left_out
