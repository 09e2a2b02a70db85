"""Heads: embeddings to scores.

Knows nothing about files.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from mlfilter_core.compute.linear import ACTIVATIONS as ACTIVATIONS
from mlfilter_core.compute.linear import activated_linear
from mlfilter_core.embedding_store.fingerprint import Fingerprint, describe_differences, differences, name_of
from mlfilter_core.errors import HeadError

TASKS = ("regression", "binary", "multiclass")


@dataclass(frozen=True)
class Head:
    """Linear layers with an activation between them.

    Attributes:
        name: The head's name in the job.
        weights: float32 (n_out, n_in) of each layer.
        biases: float32 (n_out,) of each layer.
        activation: One of `ACTIVATIONS`, between the layers.
        encoder: Fingerprint of the encoder it was trained on; empty if the checkpoint does not state it.
        task: One of `TASKS`. The outputs of a classifier are logits; a single one is that of the second class.
        labels: Names of a classifier's classes, or of a regression's targets if it has several and names them.
    """

    name: str
    weights: tuple[torch.Tensor, ...]
    biases: tuple[torch.Tensor, ...]
    activation: str
    encoder: Fingerprint
    task: str = "regression"
    labels: tuple[str, ...] = ()

    @property
    def dim(self) -> int:
        """Width of the embeddings."""
        return int(self.weights[0].shape[1])

    @property
    def n_outputs(self) -> int:
        """Number of outputs."""
        return int(self.weights[-1].shape[0])

    def to(self, device: torch.device, dtype: torch.dtype) -> "Head":
        """Returns the same head on another device, in another dtype."""
        weights = tuple(weight.to(device, dtype) for weight in self.weights)
        return replace(self, weights=weights, biases=tuple(bias.to(device, dtype) for bias in self.biases))

    @functools.cached_property
    def layers(self) -> Sequence[Callable[[torch.Tensor], torch.Tensor]]:
        """Functions to apply to embeddings, one after the other."""
        last = len(self.weights) - 1
        return [
            activated_linear(weight, bias, self.activation if i < last else None)
            for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True))
        ]


@torch.inference_mode()
def score(heads: Sequence[Head], embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns the outputs of every head for every embedding.

    Heads are applied one after another. Stacking their first layers into one product was slower on a CPU, since the
    values between the layers no longer fit its caches (benchmarks/annotate_cpu.py).

    Args:
        heads: Heads with the same device and dtype, for embeddings of this width.
        embeddings: float32 (n, dim).

    Returns:
        float32 (n, sum of the heads' outputs), in the order of the heads.
    """
    if not len(embeddings):
        return np.empty((0, sum(head.n_outputs for head in heads)), np.float32)
    inputs = torch.from_numpy(embeddings).to(heads[0].weights[0])
    outputs = []
    for head in heads:
        hidden = inputs
        for layer in head.layers:
            hidden = layer(hidden)
        outputs.append(hidden)
    return torch.cat(outputs, dim=1).float().cpu().numpy()


def check_heads_fit(heads: list[Head], dim: int, where: str) -> None:
    """Checks that all heads take embeddings of a width.

    Args:
        heads: The heads of a job.
        dim: Width of the embeddings.
        where: The file of embeddings, for the message.

    Raises:
        HeadError: A head takes another width.
    """
    for head in heads:
        if head.dim != dim:
            raise HeadError(
                f"head {head.name} takes embeddings of width {head.dim}, but those of {where} are {dim} wide; "
                "use the head that was trained on this encoder's embeddings"
            )


def find_mismatched_heads(heads: list[Head], made_by: Fingerprint, where: str, are_allowed: bool) -> dict[str, str]:
    """Returns the heads that were trained on embeddings of another encoder, with the differences as text.

    Args:
        heads: The heads of a job.
        made_by: Fingerprint of the encoder of the embeddings.
        where: The file of embeddings, for the message.
        are_allowed: Whether the job accepts such heads.

    Raises:
        HeadError: There is such a head, and the job does not accept it.
    """
    mismatched = {
        head.name: describe_differences(head.encoder, made_by) for head in heads if differences(head.encoder, made_by)
    }
    for head in heads:
        if head.name in mismatched and not are_allowed:
            raise HeadError(
                f"head {head.name} was trained on embeddings of {name_of(head.encoder)}, but {where} was made by "
                f"{name_of(made_by)}; they differ in {mismatched[head.name]}. Use the head that was trained on this "
                "encoder's embeddings, or set params.allow_mismatched_head: true"
            )
    return mismatched
