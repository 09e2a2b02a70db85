"""The tensors of a checkpoint as a chain of linear layers, in the order given by their names or shapes."""

import re
from collections.abc import Mapping
from itertools import pairwise, permutations
from typing import NamedTuple

import torch

from mlfilter_core.errors import HeadError

MAX_UNNUMBERED_LAYERS = 6  # few enough to try all 720 orders
# Dtypes in which linear layers are trained. Others are quantized and need scales, or are complex.
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class LinearLayers(NamedTuple):
    """Weights, float32 (n_out, n_in), and biases, float32 (n_out,), in the order in which they are applied."""

    weights: tuple[torch.Tensor, ...]
    biases: tuple[torch.Tensor, ...]


def linear_layers(tensors: Mapping[str, torch.Tensor], is_saved_in_order: bool, where: str) -> LinearLayers:
    """Returns tensors as linear layers.

    Args:
        tensors: `<layer>.weight` of each layer, and `<layer>.bias`, zero if it is missing.
        is_saved_in_order: Whether they are in the order in which their module defines them.
        where: The checkpoint, for messages.

    Raises:
        HeadError: The tensors are not a chain of linear layers, not finite, or not plain floats.
    """
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
            f"{where}: not a chain of linear layers; it contains " + (", ".join(list(remaining)[:5]) or "nothing")
        )
    if not all(tensor.isfinite().all() for tensor in (*weights, *biases)):
        raise HeadError(f"{where}: a weight is NaN or infinite; the head's training diverged")
    return LinearLayers(tuple(weights), tuple(biases))


def _check_plain(tensor: torch.Tensor, what: str, where: str) -> None:
    """Rejects a tensor that is not an array of floats: computing with it could fail, err or fill the memory."""
    is_dense = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_nested
    if not is_dense or tensor.dtype not in DTYPES:
        kind = f"{tensor.dtype} {tensor.layout} on {tensor.device}".replace("torch.", "")
        raise HeadError(f"{where}: {what} is {kind}, not dense floats; save it as float32, on the CPU")
    if not tensor.numel():
        raise HeadError(f"{where}: {what} is empty, of shape {tuple(tensor.shape)}; save the weights of a trained head")
    # A view can repeat one number any number of times.
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise HeadError(f"{where}: {what} claims more values than the file contains; save a copy, tensor.contiguous()")


def _in_order(layers: dict[str, torch.Tensor], is_saved_in_order: bool, where: str) -> list[str]:
    """Returns the layers' names in the order in which they are applied.

    If the names differ only in numbers (`mlp.0`, `mlp.2`, `mlp.10`), the order is that of the numbers. Otherwise it is
    their order in the state dict, which is that of the module's definition. safetensors sorts tensors by name, so there
    the shapes must leave only one order.
    """
    if len({re.sub(r"\d+", "", key) for key in layers}) <= 1:
        return sorted(layers, key=_natural)
    if is_saved_in_order:
        return list(layers)
    orders = permutations(layers) if len(layers) <= MAX_UNNUMBERED_LAYERS else ()
    fitting = [order for order in orders if _fits([layers[key] for key in order])]
    if len(fitting) != 1:
        raise HeadError(
            f"{where}: the order of the layers {', '.join(layers)} cannot be determined from their names and shapes; "
            "name them by number, as torch.nn.Sequential does"
        )
    return list(fitting[0])


def _fits(weights: list[torch.Tensor]) -> bool:
    return all(after.shape[1:] == before.shape[:1] for before, after in pairwise(weights))


def _natural(key: str) -> list[tuple[int, str]]:
    """Returns a key that sorts numbers by length, then by digits: int() rejects more than 4300 digits."""
    parts = [part.lstrip("0") if part.isdigit() else part for part in re.split(r"(\d+)", key)]
    return [(len(part), part) if i % 2 else (-1, part) for i, part in enumerate(parts)]
