"""Standardised embeddings and targets for training, and the head for the original ones.

All dimensions of an embedding are divided by the same number: their proportions are meaningful to the encoder, and some
are constant.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from mlfilter_core.training.row_buffers import Buffer, RowBuffers


class Scaling:
    """Scales embeddings, and the targets of a regression, to mean 0 and variance 1."""

    def __init__(self, rows: RowBuffers, targets: NDArray[np.float32], task: str) -> None:
        """Computes the means and standard deviations.

        Args:
            rows: Embeddings of n documents.
            targets: float32 (n, n_outputs).
            task: Targets of a `regression` are scaled; classes are not.
        """
        n, total, squares = 0, np.zeros(1), np.zeros(1)
        for _, embeddings in rows.in_order():
            wide = embeddings.astype(np.float64)
            n, total, squares = n + len(wide), total + wide.sum(axis=0), squares + (wide**2).sum(axis=0)
        self._mean = total / n
        self._deviation = float(np.sqrt(np.mean(squares / n - self._mean**2))) or 1.0
        is_regression = task == "regression"
        self._target_mean = targets.mean(axis=0, dtype=np.float64) if is_regression else np.zeros(1)
        self._target_deviation = targets.std(axis=0, dtype=np.float64) if is_regression else np.ones(1)
        self.dim = len(self._mean)

    def embeddings(self, buffer: Buffer) -> Buffer:
        """Returns scaled embeddings, float32."""
        return Buffer(buffer.positions, np.asarray((buffer.embeddings - self._mean) / self._deviation, np.float32))

    def targets(self, targets: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns scaled targets."""
        return ((targets - self._target_mean) / self._target_deviation).astype(np.float32)

    def unscaled(self, outputs: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns the outputs for scaled targets on the scale of the original targets."""
        return np.asarray(outputs * self._target_deviation + self._target_mean, np.float32)

    def folded_into(
        self, weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor]
    ) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
        """Returns float32 weights and biases that take original embeddings and return original targets."""
        weights, biases = list(weights), list(biases)
        weights[0] = weights[0] / self._deviation
        biases[0] = biases[0] - weights[0] @ torch.from_numpy(self._mean)
        deviation, mean = torch.from_numpy(self._target_deviation), torch.from_numpy(self._target_mean)
        weights[-1], biases[-1] = weights[-1] * deviation[:, None], biases[-1] * deviation + mean
        return tuple(weight.float() for weight in weights), tuple(bias.float() for bias in biases)
