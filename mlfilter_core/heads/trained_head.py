"""The project's own file format of heads, which `mlfilter_core.heads.checkpoint_formats` reads."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from mlfilter_core.embedding_store.fingerprint import Fingerprint
from mlfilter_core.errors import HeadError, in_one_line
from mlfilter_core.files.new_file import open_new

if TYPE_CHECKING:
    import torch

FORMAT = "mlfilter-head/1"
TRAINING = "training"  # key in the metadata: a record of the training, as JSON
TENSORS_SHA256 = "tensors_sha256"  # key in the metadata: digest of names and values


@dataclass(frozen=True)
class TrainedHead:
    """The content of a trained head's file.

    Attributes:
        weights: float32 (n_out, n_in) of each layer.
        biases: float32 (n_out,) of each layer.
        activation: Activation between the layers.
        task: Task, as in `mlfilter_core.heads.head.Head`.
        labels: Names of targets or classes, as there.
        encoder: Fingerprint of the encoder of the embeddings; empty if they do not state it.
        training: Record of the training: request, counts, metrics.
    """

    weights: Sequence["torch.Tensor"]
    biases: Sequence["torch.Tensor"]
    activation: str
    task: str
    labels: Sequence[str]
    encoder: Fingerprint
    training: Mapping[str, Any]


def write_head(path: Path, head: TrainedHead) -> None:
    """Writes a head as safetensors, with layers numbered as in `torch.nn.Sequential` and the rest in the metadata."""
    from safetensors.torch import save

    tensors: dict[str, torch.Tensor] = {}
    for i, (weight, bias) in enumerate(zip(head.weights, head.biases, strict=True)):
        tensors[f"{2 * i}.weight"], tensors[f"{2 * i}.bias"] = weight.contiguous(), bias.contiguous()
    facts: dict[str, Any] = {
        "format": FORMAT,
        TENSORS_SHA256: tensors_sha256({name: tensor.cpu().numpy() for name, tensor in tensors.items()}),
        "activation": head.activation,
        "task": head.task,
        **({"labels": list(head.labels)} if head.labels else {}),
        **({"encoder": dict(head.encoder)} if head.encoder else {}),
        TRAINING: dict(head.training),
    }
    content = save(tensors, {name: value if isinstance(value, str) else _json(value) for name, value in facts.items()})
    with open_new(path) as file:  # `save_file` replaces the file by one that only its owner can read
        file.write(content)


def tensors_sha256(tensors: Mapping[str, NDArray[Any]]) -> str:
    """Returns the digest of named float32 tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].shape} ".encode() + tensors[name].astype("<f4").tobytes())
    return digest.hexdigest()


def read_training(path: Path) -> dict[str, Any] | None:
    """Returns the record of a head's training; None if the file is not of this format.

    Raises:
        HeadError: The file cannot be read.
    """
    from safetensors import safe_open

    try:
        with safe_open(path, "numpy") as file:
            written = (file.metadata() or {}).get(TRAINING)
        training = None if written is None else json.loads(written)
    except Exception as error:  # safetensors raises its own errors, and OSError
        raise HeadError(f"{path} is not a head that was trained here ({in_one_line(error)}); move it away") from error
    return training if isinstance(training, dict) else None


def stated_width(path: Path) -> int | None:
    """Returns the width of the embeddings that a head takes, without torch; None if the file is not of this format.

    The head's loading reports what is wrong with other files.
    """
    from safetensors import safe_open

    try:
        with safe_open(path, "numpy") as file:
            is_ours = (file.metadata() or {}).get("format") == FORMAT
            return int(file.get_slice("0.weight").get_shape()[1]) if is_ours else None
    except Exception:  # safetensors raises its own errors, and OSError
        return None


def check_width(name: str, takes: int, dim: int, where: str) -> None:
    """Checks that a head takes embeddings of a width.

    Args:
        name: The head's name in the job.
        takes: Width that the head takes.
        dim: Width of the embeddings.
        where: The file of embeddings, for the message.

    Raises:
        HeadError: The head takes another width.
    """
    if takes != dim:
        raise HeadError(
            f"head {name} takes embeddings of width {takes}, but those of {where} are {dim} wide; use the head that "
            "was trained on this encoder's embeddings"
        )


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)
