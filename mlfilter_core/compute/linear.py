"""Linear layers at the speed of the processor.

On a CPU, PyTorch multiplies float32 matrices with MKL, which uses half of what an AMD processor can do: 190
GFLOP/s on two cores of a Zen 5 EPYC, in the shapes of MiniLM, where oneDNN does 400, and 450 with weights in
the order that it likes best. In bfloat16 PyTorch takes oneDNN by itself: 720, and 890 with such weights. The
operators are those that torch.compile puts in place of a linear layer.
"""

from collections.abc import Callable
from typing import cast

import torch

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": torch.relu,
    "gelu": torch.nn.functional.gelu,
    "tanh": torch.tanh,
}
_HAS_ONEDNN = bool(torch._C._has_mkldnn) and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def linear(inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Returns `inputs @ weight.T + bias`, as `torch.nn.functional.linear` does.

    Args:
        inputs: (..., n_in).
        weight: (n_out, n_in), of the inputs' dtype and device.
        bias: (n_out,), or None.
    """
    if _HAS_ONEDNN and inputs.dtype == torch.float32 and inputs.device.type == "cpu" and not torch.is_grad_enabled():
        return _onednn_linear(inputs, weight, bias)
    return torch.nn.functional.linear(inputs, weight, bias)


def activated_linear(
    weight: torch.Tensor, bias: torch.Tensor, activation: str | None
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Returns what maps (n, n_in) to `activation(inputs @ weight.T + bias)`, for inference.

    On a CPU it holds a second copy of the weight, in oneDNN's own order, and oneDNN applies the activation.

    Args:
        weight: (n_out, n_in).
        bias: (n_out,), of the weight's dtype and device.
        activation: One of `ACTIVATIONS`, or None.
    """
    if weight.device.type == "cpu" and _can_pack(weight.dtype):
        packed = torch.ops.mkldnn._reorder_linear_weight(weight)
        return lambda inputs: _onednn_linear(inputs, packed, bias, activation or "none")
    if activation is None:
        return lambda inputs: torch.nn.functional.linear(inputs, weight, bias)
    activate = ACTIVATIONS[activation]
    return lambda inputs: activate(torch.nn.functional.linear(inputs, weight, bias))


class PackedLinear(torch.nn.Linear):
    """A linear layer for inference on a CPU, with a second copy of its weight in oneDNN's own order."""

    def __init__(self, layer: torch.nn.Linear) -> None:
        """Takes over the parameters of a layer."""
        super().__init__(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        self.weight, self.bias = layer.weight, layer.bias
        self._packed_weight: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach())

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Returns (..., n_out) for (..., n_in)."""
        return _onednn_linear(input, self._packed_weight, self.bias)


def pack_linear_layers(model: torch.nn.Module) -> None:
    """Replaces every plain linear layer that lies on the CPU, in place; the model is for inference from then on."""
    for name, child in model.named_children():
        if type(child) is not torch.nn.Linear:
            pack_linear_layers(child)
        elif child.weight.device.type == "cpu" and _can_pack(child.weight.dtype):
            setattr(model, name, PackedLinear(child))


def _can_pack(dtype: torch.dtype) -> bool:
    if dtype == torch.bfloat16:  # needs AVX-512 at least
        return _HAS_ONEDNN and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return _HAS_ONEDNN and dtype == torch.float32


def _onednn_linear(
    inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, activation: str = "none"
) -> torch.Tensor:
    algorithm = "none" if activation == "gelu" else ""  # not the approximation by tanh
    return cast(torch.Tensor, torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, activation, [], algorithm))
