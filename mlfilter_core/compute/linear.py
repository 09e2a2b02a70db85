"""Linear layers for inference, whose weights are packed for oneDNN on a CPU.

On a CPU, PyTorch multiplies float32 matrices with MKL, which reaches half of an AMD processor's speed: 190 GFLOP/s on
two cores of a Zen 5 EPYC, with the shapes of MiniLM. oneDNN reaches 400, and 450 with packed weights. In bfloat16
PyTorch uses oneDNN already: 720 GFLOP/s, and 890 with packed weights.
"""

import functools
from collections.abc import Callable

import torch
from torch.nn import functional

from mlfilter_core.compute import onednn

# Each with the default parameters of its PyTorch module: a slope of 0.01 for leaky_relu, alpha 1 for elu.
ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": torch.relu,
    "gelu": functional.gelu,
    "tanh": torch.tanh,
    "gelu_tanh": functools.partial(functional.gelu, approximate="tanh"),
    "quick_gelu": lambda inputs: inputs * torch.sigmoid(1.702 * inputs),
    "silu": functional.silu,
    "sigmoid": torch.sigmoid,
    "leaky_relu": functional.leaky_relu,
    "relu6": functional.relu6,
    "relu_squared": lambda inputs: torch.relu(inputs).square(),
    "elu": functional.elu,
    "celu": functional.celu,
    "selu": functional.selu,
    "mish": functional.mish,
    "softplus": functional.softplus,
    "softsign": functional.softsign,
    "hardswish": functional.hardswish,
    "hardsigmoid": functional.hardsigmoid,
    "hardtanh": functional.hardtanh,
    "softmax": functools.partial(torch.softmax, dim=-1),
}
FUSED = ("relu", "gelu", "tanh")  # computed by oneDNN together with the matrix product


def activated_linear(
    weight: torch.Tensor, bias: torch.Tensor, activation: str | None
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Returns a function that maps (n, n_in) to `activation(inputs @ weight.T + bias)`, for inference.

    On a CPU it keeps a packed copy of the weight, and oneDNN applies the activation if it is in `FUSED`.

    Args:
        weight: (n_out, n_in).
        bias: (n_out,), with the weight's dtype and device.
        activation: One of `ACTIVATIONS`, or None.
    """
    if _can_pack(weight):
        packed = onednn.pack(weight)
        if activation is None or activation in FUSED:
            return lambda inputs: onednn.linear(inputs, packed, bias, activation)
        activate = ACTIVATIONS[activation]
        return lambda inputs: activate(onednn.linear(inputs, packed, bias))
    if activation is None:
        return lambda inputs: functional.linear(inputs, weight, bias)
    activate = ACTIVATIONS[activation]
    return lambda inputs: activate(functional.linear(inputs, weight, bias))


class PackedLinear(torch.nn.Linear):
    """A linear layer for inference on a CPU, with a packed copy of its weight."""

    def __init__(self, layer: torch.nn.Linear) -> None:
        """Takes over the parameters of a layer."""
        super().__init__(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        self.weight, self.bias = layer.weight, layer.bias
        self._packed_weight = onednn.pack(layer.weight.detach())

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Returns (..., n_out) for (..., n_in)."""
        return onednn.linear(input, self._packed_weight, self.bias)


def pack_linear_layers(model: torch.nn.Module) -> None:
    """Replaces every plain linear layer on the CPU, in place; the model is for inference from then on."""
    for name, child in model.named_children():
        if type(child) is not torch.nn.Linear:
            pack_linear_layers(child)
        elif _can_pack(child.weight) and _is_plain(child):
            setattr(model, name, PackedLinear(child))


def _is_plain(layer: torch.nn.Linear) -> bool:
    """Whether a layer's forward pass is that of its weight: no hook changes it, and nothing computes the weight."""
    return "weight" in layer._parameters and not layer._forward_hooks and not layer._forward_pre_hooks


def _can_pack(weight: torch.Tensor) -> bool:
    return weight.device.type == "cpu" and onednn.is_available(weight.dtype)
