"""Checkpoints to heads, and embeddings to scores.

Knows nothing about files of embeddings. A checkpoint is read as tensors and plain values only: nothing
in it is executed.
"""

import json
import logging
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise, permutations
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file

from mlfilter_core.errors import HeadError, in_one_line
from mlfilter_core.file_identity import file_sha256
from mlfilter_core.fingerprint import Fingerprint, describe_differences, differences, name_of
from mlfilter_core.head_files import checkpoint_file
from mlfilter_core.linear import linear

_log = logging.getLogger(__name__)

# In place where PyTorch can: their input is the output of the layer before, which nobody else holds.
ACTIVATIONS = {"relu": torch.relu_, "gelu": torch.nn.functional.gelu, "tanh": torch.tanh_}
MAX_UNNUMBERED_LAYERS = 6  # whose 720 orders are tried in no time
# Keys under which training code wraps the weights.
WRAPPERS = ("state_dict", "model_state_dict")
# What linear layers are trained in; others are quantised, need their scales, or would lose their imaginary part.
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Head:
    """Linear layers with an activation between them.

    Attributes:
        name: As the job calls it.
        sha256: Digest of the checkpoint file.
        weights: float32 (n_out, n_in) of each layer.
        biases: float32 (n_out,) of each layer.
        activation: One of `ACTIVATIONS`, between the layers.
        encoder: Fingerprint of the encoder it was trained on; empty where the checkpoint does not say.
    """

    name: str
    sha256: str
    weights: tuple[torch.Tensor, ...]
    biases: tuple[torch.Tensor, ...]
    activation: str
    encoder: Fingerprint

    @property
    def dim(self) -> int:
        """Width of the embeddings that it takes."""
        return int(self.weights[0].shape[1])

    @property
    def n_targets(self) -> int:
        return int(self.weights[-1].shape[0])

    def columns(self, prefix: str) -> list[str]:
        """Names of its scores: `<prefix><name>`, with `_<i>` where it has several targets."""
        if self.n_targets == 1:
            return [f"{prefix}{self.name}"]
        return [f"{prefix}{self.name}_{i}" for i in range(self.n_targets)]

    def to(self, device: torch.device, dtype: torch.dtype) -> "Head":
        """Returns the same head elsewhere."""
        return Head(
            self.name,
            self.sha256,
            tuple(weight.to(device, dtype) for weight in self.weights),
            tuple(bias.to(device, dtype) for bias in self.biases),
            self.activation,
            self.encoder,
        )


def load_head(name: str, checkpoint: Path) -> Head:
    """Reads a head: one linear layer or an MLP, whose shapes the weights tell.

    Args:
        name: What the job calls it.
        checkpoint: A PyTorch state dict (`.pt`, `.pth`, `.ckpt`, `.bin`), a `.safetensors` file, or a
            folder with `model.safetensors`. Safetensors metadata may name `activation` (relu, gelu,
            tanh; ReLU otherwise), and as `encoder` the JSON of the fingerprint of the encoder that the head
            was trained on, or as `encoder_weights_sha256` the digest of its weights alone.

    Raises:
        HeadError: The file is missing or corrupted, holds code, or is not a chain of linear layers.
    """
    path = checkpoint_file(name, checkpoint)
    where = f"head {name}: {path}"
    try:
        tensors, metadata = _read_safetensors(path) if path.suffix == ".safetensors" else (_read_pickle(path), {})
    except Exception as error:  # torch and safetensors raise RuntimeError, UnpicklingError, KeyError, ...
        raise HeadError(
            f"{where} does not load as plain tensors ({in_one_line(error)}); nothing in it was executed. Save it again "
            "with torch.save(head.state_dict(), path) or safetensors"
        ) from error
    weights, biases = _layers(tensors, path.suffix != ".safetensors", where)
    activation = metadata.get("activation", "relu")
    if activation not in ACTIVATIONS:
        raise HeadError(f"{where}: unknown activation {activation!r}; known: {', '.join(ACTIVATIONS)}")
    if len(weights) > 1 and "activation" not in metadata:
        _log.info("%s names no activation; ReLU is taken between its %d layers", where, len(weights))
    return Head(name, file_sha256(path), weights, biases, activation, _trained_on(metadata, where))


@torch.inference_mode()
def score(heads: list[Head], embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
    """Applies every head to every embedding.

    Args:
        heads: All on one device and of one dtype, each as wide as the embeddings.
        embeddings: float32 (n, dim).

    Returns:
        float32 (n, sum of the heads' targets), in the order of the heads.
    """
    inputs = torch.from_numpy(embeddings).to(heads[0].weights[0])
    return torch.cat([_apply(head, inputs) for head in heads], dim=1).float().cpu().numpy()


def check_heads_fit(heads: list[Head], dim: int, where: str) -> None:
    """Checks that heads take embeddings of a width.

    Args:
        heads: The heads of a job.
        dim: Width of the embeddings.
        where: The file of embeddings, for the message.

    Raises:
        HeadError: A width differs, or two scores would have one name.
    """
    columns = [column for head in heads for column in head.columns("")]
    twice = next((column for column in columns if columns.count(column) > 1), None)
    if twice:
        names = ", ".join(head.name for head in heads)
        raise HeadError(f"two scores are both named {twice}; rename one of the heads {names}")
    for head in heads:
        if head.dim != dim:
            raise HeadError(
                f"head {head.name} takes embeddings of width {head.dim}, but those of {where} are {dim} wide; "
                "use the head that was trained on this encoder's embeddings"
            )


def find_mismatched_heads(heads: list[Head], made_by: Fingerprint, where: str, are_allowed: bool) -> dict[str, str]:
    """Returns the heads that were trained on the embeddings of another encoder, and what differs, in words.

    Args:
        heads: The heads of a job.
        made_by: Fingerprint of the encoder of the embeddings.
        where: The file of embeddings, for the message.
        are_allowed: Whether the job wants them all the same.

    Raises:
        HeadError: There are some, and they are not allowed.
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


def _apply(head: Head, hidden: torch.Tensor) -> torch.Tensor:
    last = len(head.weights) - 1
    for i, (weight, bias) in enumerate(zip(head.weights, head.biases, strict=True)):
        hidden = linear(hidden, weight, bias)
        if i < last:
            hidden = ACTIVATIONS[head.activation](hidden)
    return hidden


def _read_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
    return load_file(path), metadata


def _read_pickle(path: Path) -> Mapping[str, torch.Tensor]:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise ValueError("it is compressed, as torch.save never does, and may unpack to any size")
    content = torch.load(path, map_location="cpu", weights_only=True)
    for wrapper in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping):
        raise TypeError(f"it holds a {type(content).__name__}, not a state dict")
    return content


def _trained_on(metadata: Mapping[str, str], where: str) -> Fingerprint:
    if "encoder" not in metadata:
        weights = metadata.get("encoder_weights_sha256")
        return {"weights_sha256": weights} if weights else {}
    try:
        encoder = json.loads(metadata["encoder"])
    except ValueError as error:
        raise HeadError(f"{where}: its metadata `encoder` is not JSON ({error}); save the head again") from error
    if not isinstance(encoder, dict):
        raise HeadError(f"{where}: its metadata `encoder` is not a JSON object; save the head again")
    return encoder


def _layers(
    tensors: Mapping[str, torch.Tensor], is_saved_in_order: bool, where: str
) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
    """Returns weights and biases in the order in which they are applied."""
    remaining = {str(key): tensor for key, tensor in tensors.items()}
    weights: list[torch.Tensor] = []
    biases: list[torch.Tensor] = []
    layers = {key: tensor for key, tensor in remaining.items() if key.endswith("weight")}
    for key, weight in layers.items():
        if not isinstance(weight, torch.Tensor) or weight.ndim != 2 or not weight.is_floating_point():
            raise HeadError(f"{where}: {key} is not a matrix; only linear layers are supported")
        _check_plain(weight, key, where)
    for key in _in_order(layers, is_saved_in_order, where):
        weight = remaining.pop(key)
        bias = remaining.pop(f"{key.removesuffix('weight')}bias", None)
        bias = torch.zeros(weight.shape[0]) if bias is None else bias
        if not isinstance(bias, torch.Tensor):
            raise HeadError(f"{where}: the bias of {key} is a {type(bias).__name__}, not a tensor")
        _check_plain(bias, f"the bias of {key}", where)
        if bias.shape != weight.shape[:1]:
            raise HeadError(f"{where}: the bias of {key} has shape {tuple(bias.shape)}, not ({weight.shape[0]},)")
        if weights and weight.shape[1] != weights[-1].shape[0]:
            raise HeadError(
                f"{where}: {key} takes {weight.shape[1]} values, but the layer before it gives {weights[-1].shape[0]}"
            )
        weights.append(weight.float())
        biases.append(bias.float())
    if not weights or remaining:
        raise HeadError(
            f"{where}: not a chain of linear layers; it holds " + (", ".join(list(remaining)[:5]) or "nothing")
        )
    if not all(tensor.isfinite().all() for tensor in (*weights, *biases)):
        raise HeadError(f"{where}: a weight is NaN or infinite; the head's training diverged")
    return tuple(weights), tuple(biases)


def _check_plain(tensor: torch.Tensor, what: str, where: str) -> None:
    """Refuses what is no array of floats: it fails, changes its values or fills the memory when it is computed with."""
    is_dense = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_nested
    if not is_dense or tensor.dtype not in DTYPES:
        kind = f"{tensor.dtype} {tensor.layout} on {tensor.device}".replace("torch.", "")
        raise HeadError(f"{where}: {what} is {kind}, not dense floats; save it as float32, on the CPU")
    if not tensor.numel():
        raise HeadError(f"{where}: {what} is empty, of shape {tuple(tensor.shape)}; save the weights of a trained head")
    # A view may show one number as often as it likes.
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise HeadError(f"{where}: {what} claims more values than the file holds; save a copy, tensor.contiguous()")


def _in_order(layers: dict[str, torch.Tensor], is_saved_in_order: bool, where: str) -> list[str]:
    """Returns the layers' names in the order in which they are applied.

    By their numbers, `mlp.0`, `mlp.2`, `mlp.10`, where only those differ; else as the module defines them, which
    a state dict keeps. Safetensors sort their tensors: there the shapes must leave one order.
    """
    if len({re.sub(r"\d+", "", key) for key in layers}) <= 1:
        return sorted(layers, key=_natural)
    if is_saved_in_order:
        return list(layers)
    orders = permutations(layers) if len(layers) <= MAX_UNNUMBERED_LAYERS else ()
    fitting = [order for order in orders if _fits([layers[key] for key in order])]
    if len(fitting) != 1:
        raise HeadError(
            f"{where}: the order of the layers {', '.join(layers)} is not to be told from their names and shapes; "
            "name them by number, as torch.nn.Sequential does"
        )
    return list(fitting[0])


def _fits(weights: list[torch.Tensor]) -> bool:
    return all(after.shape[1:] == before.shape[:1] for before, after in pairwise(weights))


def _natural(key: str) -> list[tuple[int, str]]:
    """Numbers by their length, then their digits: int() refuses more than 4300 of these."""
    parts = [part.lstrip("0") if part.isdigit() else part for part in re.split(r"(\d+)", key)]
    return [(len(part), part) if i % 2 else (-1, part) for i, part in enumerate(parts)]
