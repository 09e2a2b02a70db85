"""A trained head as a file: the project's own format of heads, which `mlfilter_core.heads.checkpoint_formats` reads."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlfilter_core.embedding_store.fingerprint import Fingerprint
from mlfilter_core.errors import HeadError, in_one_line

if TYPE_CHECKING:
    import torch

FORMAT = "mlfilter-head/1"
TRAINING = "training"  # all that the training says of itself, as JSON in the metadata


@dataclass(frozen=True)
class TrainedHead:
    """What a file of a trained head holds.

    Attributes:
        weights: float32 (n_out, n_in) of each layer.
        biases: float32 (n_out,) of each layer.
        activation: Between the layers.
        task: As in `mlfilter_core.heads.head.Head`.
        labels: As there.
        encoder: Fingerprint of the encoder of the embeddings; empty where they do not say.
        training: Request, counts, metrics.
    """

    weights: Sequence["torch.Tensor"]
    biases: Sequence["torch.Tensor"]
    activation: str
    task: str
    labels: Sequence[str]
    encoder: Fingerprint
    training: Mapping[str, Any]


def write_head(path: Path, head: TrainedHead) -> None:
    """Writes a head as safetensors, layers numbered as in `torch.nn.Sequential`, the rest in the metadata."""
    from safetensors.torch import save_file

    tensors: dict[str, torch.Tensor] = {}
    for i, (weight, bias) in enumerate(zip(head.weights, head.biases, strict=True)):
        tensors[f"{2 * i}.weight"], tensors[f"{2 * i}.bias"] = weight.contiguous(), bias.contiguous()
    facts: dict[str, Any] = {
        "format": FORMAT,
        "activation": head.activation,
        "task": head.task,
        **({"labels": list(head.labels)} if head.labels else {}),
        **({"encoder": dict(head.encoder)} if head.encoder else {}),
        TRAINING: dict(head.training),
    }
    save_file(tensors, path, {name: value if isinstance(value, str) else _json(value) for name, value in facts.items()})


def read_training(path: Path) -> dict[str, Any] | None:
    """Returns what the training of a head says of itself; None where the file is not one of ours.

    Raises:
        HeadError: The file cannot be read.
    """
    from safetensors import safe_open

    try:
        with safe_open(path, "numpy") as file:
            written = (file.metadata() or {}).get(TRAINING)
        training = None if written is None else json.loads(written)
    except Exception as error:  # safetensors raises its own, and OSError, for what is no such file
        raise HeadError(f"{path} is not a head that was trained here ({in_one_line(error)}); move it away") from error
    return training if isinstance(training, dict) else None


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)
