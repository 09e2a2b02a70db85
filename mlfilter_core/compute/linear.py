"""Linear layers for inference, whose weights are packed for oneDNN on a CPU.

On a CPU, PyTorch multiplies float32 matrices with MKL, which reaches half of an AMD processor's speed: 190 GFLOP/s on
two cores of a Zen 5 EPYC, with the shapes of MiniLM. oneDNN reaches 400, and 450 with packed weights. In bfloat16
PyTorch uses oneDNN already: 720 GFLOP/s, and 890 with packed weights.
"""

from collections.abc import Callable

import torch

from mlfilter_core.compute import onednn

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": torch.relu,
    "gelu": torch.nn.functional.gelu,
    "tanh": torch.tanh,
}


def activated_linear(
    weight: torch.Tensor, bias: torch.Tensor, activation: str | None
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Returns a function that maps (n, n_in) to `activation(inputs @ weight.T + bias)`, for inference.

    On a CPU it keeps a packed copy of the weight, and oneDNN applies the activation.

    Args:
        weight: (n_out, n_in).
        bias: (n_out,), with the weight's dtype and device.
        activation: One of `ACTIVATIONS`, or None.
    """
    if _can_pack(weight):
        packed = onednn.pack(weight)
        return lambda inputs: onednn.linear(inputs, packed, bias, activation)
    if activation is None:
        return lambda inputs: torch.nn.functional.linear(inputs, weight, bias)
    activate = ACTIVATIONS[activation]
    return lambda inputs: activate(torch.nn.functional.linear(inputs, weight, bias))


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
        elif _can_pack(child.weight):
            setattr(model, name, PackedLinear(child))


def _can_pack(weight: torch.Tensor) -> bool:
    return weight.device.type == "cpu" and onednn.is_available(weight.dtype)
