import itertools

import pytest
import torch
from torch import nn

from mlfilter_core.compute.linear import ACTIVATIONS, FUSED
from mlfilter_core.heads.layers import (
    Activation,
    Layer,
    LayerNorm,
    Linear,
    Parallel,
    PReLU,
    RMSNorm,
    Scale,
    functions,
    input_width,
    linear_widths,
    mlp,
    output_width,
    side_by_side,
)

INPUTS = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
# The module of each activation; quick_gelu and relu_squared have none.
MODULES: dict[str, nn.Module] = {
    "relu": nn.ReLU(), "gelu": nn.GELU(), "tanh": nn.Tanh(), "gelu_tanh": nn.GELU("tanh"), "silu": nn.SiLU(),
    "sigmoid": nn.Sigmoid(), "leaky_relu": nn.LeakyReLU(), "relu6": nn.ReLU6(), "elu": nn.ELU(), "celu": nn.CELU(),
    "selu": nn.SELU(), "mish": nn.Mish(), "softplus": nn.Softplus(), "softsign": nn.Softsign(),
    "hardswish": nn.Hardswish(), "hardsigmoid": nn.Hardsigmoid(), "hardtanh": nn.Hardtanh(), "softmax": nn.Softmax(-1),
}  # fmt: skip


def linear(n_in: int, n_out: int, seed: int = 0) -> Linear:
    generator = torch.Generator().manual_seed(seed)
    return Linear(torch.randn(n_out, n_in, generator=generator), torch.randn(n_out, generator=generator))


def applied(*layers: Layer, inputs: torch.Tensor = INPUTS) -> torch.Tensor:
    with torch.inference_mode():
        for function in functions(layers):
            inputs = function(inputs)
        return inputs


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_is_that_of_its_module_alone_and_after_a_linear_layer(name: str) -> None:
    module = MODULES.get(name)
    layer = linear(6, 4)
    hidden = INPUTS @ layer.weight.T + layer.bias
    if module is not None:
        torch.testing.assert_close(applied(Activation(name)), module(INPUTS))
    torch.testing.assert_close(applied(layer, Activation(name)), ACTIVATIONS[name](hidden), atol=1e-5, rtol=1e-5)
    assert len(functions([layer, Activation(name)])) == 1, "a linear layer takes in its activation"


def test_activations_without_a_module_are_those_of_transformers() -> None:
    from transformers.activations import ACT2FN

    assert ACTIVATIONS.keys() - MODULES == {"quick_gelu", "relu_squared"}
    torch.testing.assert_close(applied(Activation("quick_gelu")), ACT2FN["quick_gelu"](INPUTS))
    torch.testing.assert_close(applied(Activation("relu_squared")), ACT2FN["relu2"](INPUTS))
    assert set(FUSED) < set(ACTIVATIONS)


def test_norms_scales_and_slopes_are_those_of_torch() -> None:
    weight, bias = torch.linspace(0.5, 2, 6), torch.linspace(-1, 1, 6)
    norm, rms = nn.LayerNorm(6, eps=1e-3), nn.RMSNorm(6, eps=1e-3)
    with torch.no_grad():
        norm.weight.copy_(weight)
        norm.bias.copy_(bias)
        rms.weight.copy_(weight)
    torch.testing.assert_close(applied(LayerNorm(weight, bias, 1e-3)), norm(INPUTS).detach())
    torch.testing.assert_close(applied(LayerNorm(None, None, 1e-3)), nn.LayerNorm(6, 1e-3, False)(INPUTS))
    torch.testing.assert_close(applied(RMSNorm(weight, 1e-3)), rms(INPUTS).detach())
    torch.testing.assert_close(applied(Scale(weight, bias)), INPUTS * weight + bias)
    torch.testing.assert_close(applied(Scale(weight, bias, bias / 2)), (INPUTS - bias / 2) * weight + bias)
    for slopes in (weight, weight[:1]):
        torch.testing.assert_close(applied(PReLU(slopes)), torch.where(INPUTS > 0, INPUTS, INPUTS * slopes))


def test_chains_side_by_side_take_the_same_values() -> None:
    one, two = (linear(6, 2), Activation("tanh"), linear(2, 1)), (linear(6, 3, seed=1),)
    both = side_by_side([one, two])
    assert isinstance(both, Parallel)
    torch.testing.assert_close(applied(both), torch.cat([applied(*one), applied(*two)], dim=1))
    assert (input_width([both]), output_width([both]), linear_widths([both])) == (6, 4, [4])


def test_linear_layers_side_by_side_are_one() -> None:
    both = side_by_side([(linear(6, 2),), (linear(6, 3, seed=1),)])
    assert isinstance(both, Linear)
    assert both.weight.shape == (5, 6)


def test_the_widths_of_layers_are_those_of_their_weights() -> None:
    weight = torch.ones(6)
    layers = [
        Activation("relu"),
        PReLU(torch.ones(1)),
        LayerNorm(weight, None, 1e-5),
        *mlp([torch.ones(2, 6)], [weight[:2]], "relu"),
    ]
    assert (input_width(layers), output_width(layers)) == (6, 2)
    assert input_width([Activation("relu"), LayerNorm(None, None, 1e-5)]) is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_layers_change_their_dtype_with_all_their_tensors(dtype: torch.dtype) -> None:
    weight = torch.ones(6)
    chains = side_by_side([(linear(6, 1), Activation("relu")), (linear(6, 2),)])
    layers: list[Layer] = [LayerNorm(weight, weight, 1e-5), RMSNorm(weight, 1e-5), Scale(weight, weight, weight)]
    layers += [PReLU(weight), Activation("mish"), chains]
    changed = [layer.to(torch.device("cpu"), dtype) for layer in layers]
    outputs = applied(*changed, inputs=INPUTS.to(dtype))
    assert outputs.dtype == dtype
    torch.testing.assert_close(outputs.float(), applied(*layers), atol=0.2, rtol=0.1)


def test_no_activation_is_lost_or_applied_twice() -> None:
    """Every order of a linear layer, a norm and two activations."""
    pieces: list[Layer] = [linear(6, 6), LayerNorm(None, None, 1e-5), Activation("relu"), Activation("sigmoid")]
    for order in itertools.permutations(pieces):
        expected = INPUTS
        for layer in order:
            expected = expected @ layer.weight.T + layer.bias if isinstance(layer, Linear) else layer(expected)  # type: ignore[operator]
        torch.testing.assert_close(applied(*order), expected, atol=1e-5, rtol=1e-4)
