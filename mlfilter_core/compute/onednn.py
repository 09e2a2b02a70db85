"""Linear layers by oneDNN, through operators of PyTorch that only torch.compile is meant to use.

PyTorch does not document them, so a release may rename them. If one is missing, `is_available` is false, and callers
use PyTorch's own layers, which are slower.
"""

import functools
from typing import cast

import torch

OPERATORS = ("_linear_pointwise", "_reorder_linear_weight", "_is_mkldnn_bf16_supported")


@functools.cache
def missing_operators() -> list[str]:
    """Returns those of `OPERATORS` that this version of PyTorch does not have."""
    return [name for name in OPERATORS if not hasattr(torch.ops.mkldnn, name)]


def is_available(dtype: torch.dtype) -> bool:
    """Whether oneDNN multiplies matrices of a dtype on this machine's CPU."""
    if missing_operators() or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if dtype == torch.bfloat16:  # needs at least AVX-512
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32


def pack(weight: torch.Tensor) -> torch.Tensor:
    """Returns a copy of a weight (n_out, n_in) in oneDNN's own memory layout, for `linear` only."""
    return cast(torch.Tensor, torch.ops.mkldnn._reorder_linear_weight(weight))


def linear(
    inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, activation: str | None = None
) -> torch.Tensor:
    """Returns `activation(inputs @ weight.T + bias)`, without gradients.

    Args:
        inputs: (..., n_in), on the CPU.
        weight: (n_out, n_in), packed or not.
        bias: (n_out,), or None.
        activation: `relu`, `gelu`, `tanh`, or None.
    """
    algorithm = "none" if activation == "gelu" else ""  # not the approximation by tanh
    attribute = activation or "none"
    return cast(torch.Tensor, torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, attribute, [], algorithm))
