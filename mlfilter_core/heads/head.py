"""Heads: embeddings to scores.

Knows nothing about files.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from mlfilter_core.embedding_store.fingerprint import Fingerprint, describe_differences, differences, name_of
from mlfilter_core.errors import HeadError
from mlfilter_core.heads.layers import (
    Function,
    Layer,
    apply,
    first_weight,
    functions,
    input_width,
    linear_widths,
    output_width,
)
from mlfilter_core.heads.trained_head import check_width

ALLOW = "params.allow_mismatched_head: true"
TASKS = ("regression", "binary", "multiclass", "multilabel")


@dataclass(frozen=True)
class Head:
    """Layers that are applied in turn.

    Attributes:
        name: The head's name in the job.
        layers: The layers, at least one of them linear.
        encoder: Fingerprint of the encoder it was trained on; empty if the checkpoint does not state it.
        task: One of `TASKS`. The outputs of a classifier are logits; a single one is that of the second class, or of
            the only label.
        labels: Names of a classifier's classes, or of a regression's targets if it has several and names them.
        assumptions: What the checkpoint does not show and was assumed, in words.
    """

    name: str
    layers: tuple[Layer, ...]
    encoder: Fingerprint
    task: str = "regression"
    labels: tuple[str, ...] = ()
    assumptions: tuple[str, ...] = ()

    @property
    def dim(self) -> int:
        """Width of the embeddings."""
        width = input_width(self.layers)
        assert width is not None, "a head has a linear layer"
        return width

    @property
    def n_outputs(self) -> int:
        """Number of outputs."""
        width = output_width(self.layers)
        assert width is not None, "a head has a linear layer"
        return width

    @property
    def widths(self) -> tuple[int, ...]:
        """Width of the embeddings, and after each linear layer."""
        return (self.dim, *linear_widths(self.layers))

    def to(self, device: torch.device, dtype: torch.dtype) -> "Head":
        """Returns the same head on another device, in another dtype."""
        return replace(self, layers=tuple(layer.to(device, dtype) for layer in self.layers))

    @functools.cached_property
    def functions(self) -> Sequence[Function]:
        """Functions to apply to embeddings, one after the other."""
        return functions(self.layers)


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
    inputs = torch.from_numpy(embeddings).to(first_weight(heads[0].layers))
    return torch.cat([apply(head.functions, inputs) for head in heads], dim=1).float().cpu().numpy()


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
        check_width(head.name, head.dim, dim, where)


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
                f"{name_of(made_by)}; they differ in {mismatched[head.name]}. {_remedy(head.encoder, made_by)}"
            )
    return mismatched


def _remedy(trained_on: Fingerprint, made_by: Fingerprint) -> str:
    """Returns what to do about embeddings of another encoder, or of the same with another pooling."""
    fields = differences(trained_on, made_by)
    is_pooled_otherwise = "pooling" in fields and "weights_sha256" not in fields
    first = f"Embed with params.pooling: {trained_on['pooling']}, or use" if is_pooled_otherwise else "Use"
    return f"{first} the head that was trained on this encoder's embeddings, or set {ALLOW}"
