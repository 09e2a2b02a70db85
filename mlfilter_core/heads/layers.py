"""The layers of a head, each a small value with the function that it applies.

Knows nothing about checkpoints.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from mlfilter_core.compute.linear import ACTIVATIONS, activated_linear

Function = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, eq=False)
class Linear:
    """`inputs @ weight.T + bias`.

    Attributes:
        weight: float32 (n_out, n_in).
        bias: float32 (n_out,).
    """

    weight: torch.Tensor
    bias: torch.Tensor

    def to(self, device: torch.device, dtype: torch.dtype) -> "Linear":
        return Linear(self.weight.to(device, dtype), self.bias.to(device, dtype))


@dataclass(frozen=True, eq=False)
class LayerNorm:
    """`torch.nn.LayerNorm` over the last dimension.

    Attributes:
        weight: float32 (n,), or None.
        bias: float32 (n,), or None.
        eps: Added to the variance.
    """

    weight: torch.Tensor | None
    bias: torch.Tensor | None
    eps: float

    def to(self, device: torch.device, dtype: torch.dtype) -> "LayerNorm":
        return LayerNorm(_to(self.weight, device, dtype), _to(self.bias, device, dtype), self.eps)

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        return functional.layer_norm(inputs, inputs.shape[-1:], self.weight, self.bias, self.eps)


@dataclass(frozen=True, eq=False)
class RMSNorm:
    """`torch.nn.RMSNorm` over the last dimension.

    Attributes:
        weight: float32 (n,).
        eps: Added to the mean square.
    """

    weight: torch.Tensor
    eps: float

    def to(self, device: torch.device, dtype: torch.dtype) -> "RMSNorm":
        return RMSNorm(self.weight.to(device, dtype), self.eps)

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        return functional.rms_norm(inputs, inputs.shape[-1:], self.weight, self.eps)


@dataclass(frozen=True, eq=False)
class Scale:
    """`(inputs - center) * factor + shift`: a BatchNorm with its running statistics, or standardisation.

    The center is not folded into the shift: where it is 1e4 times the deviation, float32 would lose four digits.

    Attributes:
        factor: float32 (n,).
        shift: float32 (n,).
        center: float32 (n,), or None for zero.
    """

    factor: torch.Tensor
    shift: torch.Tensor
    center: torch.Tensor | None = None

    def to(self, device: torch.device, dtype: torch.dtype) -> "Scale":
        return Scale(self.factor.to(device, dtype), self.shift.to(device, dtype), _to(self.center, device, dtype))

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        centered = inputs if self.center is None else inputs - self.center
        return torch.addcmul(self.shift, centered, self.factor)


@dataclass(frozen=True)
class Activation:
    """A function without weights.

    Attributes:
        name: One of `ACTIVATIONS`.
    """

    name: str

    def to(self, device: torch.device, dtype: torch.dtype) -> "Activation":
        return self

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        return ACTIVATIONS[self.name](inputs)


@dataclass(frozen=True, eq=False)
class PReLU:
    """`torch.nn.PReLU`.

    Attributes:
        weight: float32 (1,) or (n,), slope of negative values.
    """

    weight: torch.Tensor

    def to(self, device: torch.device, dtype: torch.dtype) -> "PReLU":
        return PReLU(self.weight.to(device, dtype))

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        return functional.prelu(inputs, self.weight)


@dataclass(frozen=True, eq=False)
class Parallel:
    """Chains of layers that take the same values; their outputs stand side by side.

    Attributes:
        chains: Layers of each chain.
    """

    chains: tuple[tuple["Layer", ...], ...]

    def to(self, device: torch.device, dtype: torch.dtype) -> "Parallel":
        return Parallel(tuple(tuple(layer.to(device, dtype) for layer in chain) for chain in self.chains))


Layer = Linear | LayerNorm | RMSNorm | Scale | Activation | PReLU | Parallel


def mlp(weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor], activation: str) -> tuple[Layer, ...]:
    """Returns linear layers with an activation between them.

    Args:
        weights: float32 (n_out, n_in) of each layer.
        biases: float32 (n_out,) of each layer.
        activation: One of `ACTIVATIONS`.
    """
    layers: list[Layer] = []
    for weight, bias in zip(weights, biases, strict=True):
        layers += [Activation(activation), Linear(weight, bias)] if layers else [Linear(weight, bias)]
    return tuple(layers)


def side_by_side(chains: Sequence[tuple[Layer, ...]]) -> Layer:
    """Returns chains for the same values as one layer: one product if each is a single linear layer."""
    firsts = [chain[0] for chain in chains if len(chain) == 1]
    linear = [layer for layer in firsts if isinstance(layer, Linear)]
    if len(linear) == len(chains):
        return Linear(torch.cat([layer.weight for layer in linear]), torch.cat([layer.bias for layer in linear]))
    return Parallel(tuple(chains))


def input_width(layers: Sequence[Layer]) -> int | None:
    """Returns the width of the values that the layers take; None if any width will do."""
    return next((width for layer in layers if (width := _n_in(layer)) is not None), None)


def output_width(layers: Sequence[Layer]) -> int | None:
    """Returns the width of the values that the layers give; None if it is that of the values they take."""
    return next((width for layer in reversed(layers) if (width := _n_out(layer)) is not None), None)


def linear_widths(layers: Sequence[Layer]) -> list[int]:
    """Returns the width after each layer that can change it."""
    changing = [layer for layer in layers if isinstance(layer, (Linear, Parallel))]
    return [width for layer in changing if (width := _n_out(layer)) is not None]


def first_weight(layers: Sequence[Layer]) -> torch.Tensor:
    """Returns the weight of a linear layer; its device and dtype are those of all layers."""
    weight = next(_weights(layers), None)
    assert weight is not None, "a head has a linear layer"
    return weight


def functions(layers: Sequence[Layer]) -> list[Function]:
    """Returns functions to apply one after the other, for inference; a linear layer takes in its activation."""
    applied: list[Function] = []
    for i, layer in enumerate(layers):
        before = layers[i - 1] if i else None
        after = layers[i + 1] if i + 1 < len(layers) else None
        if isinstance(layer, Linear):
            applied.append(
                activated_linear(layer.weight, layer.bias, after.name if isinstance(after, Activation) else None)
            )
        elif isinstance(layer, Parallel):
            applied.append(_concatenated([functions(chain) for chain in layer.chains]))
        elif not (isinstance(layer, Activation) and isinstance(before, Linear)):
            applied.append(layer)
    return applied


def apply(applied: Sequence[Function], inputs: torch.Tensor) -> torch.Tensor:
    """Returns what functions give that are applied one after the other."""
    for function in applied:
        inputs = function(inputs)
    return inputs


def _weights(layers: Sequence[Layer]) -> Iterator[torch.Tensor]:
    for layer in layers:
        if isinstance(layer, Linear):
            yield layer.weight
        elif isinstance(layer, Parallel):
            for chain in layer.chains:
                yield from _weights(chain)


def _concatenated(chains: list[list[Function]]) -> Function:
    return lambda inputs: torch.cat([apply(chain, inputs) for chain in chains], dim=-1)


def _n_in(layer: Layer) -> int | None:
    if isinstance(layer, Linear):
        return int(layer.weight.shape[1])
    if isinstance(layer, Parallel):
        return next((width for chain in layer.chains if (width := input_width(chain)) is not None), None)
    return _width(layer)


def _n_out(layer: Layer) -> int | None:
    if isinstance(layer, Linear):
        return int(layer.weight.shape[0])
    if isinstance(layer, Parallel):
        widths = [output_width(chain) for chain in layer.chains]
        return sum(width for width in widths if width is not None) if None not in widths else None
    return _width(layer)


def _width(layer: Layer) -> int | None:
    tensor = layer.factor if isinstance(layer, Scale) else getattr(layer, "weight", None)
    if tensor is None or (isinstance(layer, PReLU) and len(tensor) == 1):
        return None
    return len(tensor)


def _to(tensor: torch.Tensor | None, device: torch.device, dtype: torch.dtype) -> torch.Tensor | None:
    return None if tensor is None else tensor.to(device, dtype)
