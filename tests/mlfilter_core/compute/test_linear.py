import pytest
import torch

from mlfilter_core.compute.linear import PackedLinear, activated_linear, pack_linear_layers
from tests.mlfilter_core.compute.dtypes import ONEDNN_DTYPES


@pytest.mark.parametrize("dtype", ONEDNN_DTYPES)
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 48), (3, 7, 48), (1, 1, 48), (0, 48), (2048, 48)])
@torch.inference_mode()
def test_a_packed_layer_is_the_layer_that_it_replaces(
    dtype: torch.dtype, has_bias: bool, shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(48, 20, has_bias).to(dtype)
    inputs = torch.randn(shape).to(dtype)
    torch.testing.assert_close(PackedLinear(layer)(inputs), layer(inputs))


def test_every_plain_linear_layer_of_a_model_is_replaced_and_keeps_its_parameters() -> None:
    class Own(torch.nn.Linear):
        pass

    model = torch.nn.ModuleDict(
        {
            "outer": torch.nn.Linear(8, 4),
            "nested": torch.nn.Sequential(torch.nn.Linear(4, 4, bias=False), torch.nn.Tanh()),
            "own": Own(4, 4),
            "wide": torch.nn.Linear(4, 4, dtype=torch.float64),
            "elsewhere": torch.nn.Linear(4, 4, device="meta"),
        }
    )
    parameters = dict(model.named_parameters())
    pack_linear_layers(model)
    assert {name: type(layer) for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear)} == {
        "outer": PackedLinear,
        "nested.0": PackedLinear,
        "own": Own,
        "wide": torch.nn.Linear,
        "elsewhere": torch.nn.Linear,
    }
    after = dict(model.named_parameters())
    assert after.keys() == parameters.keys()
    assert all(after[name] is parameters[name] for name in after)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", [None, "relu", "gelu", "tanh"])
@torch.inference_mode()
def test_an_activated_layer_is_the_layer_and_the_activation_of_pytorch(
    activation: str | None, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    inputs, weight, bias = (
        torch.randn(64, 48, dtype=dtype),
        torch.randn(20, 48, dtype=dtype),
        torch.randn(20, dtype=dtype),
    )
    expected = torch.nn.functional.linear(inputs, weight, bias)
    if activation is not None:
        expected = getattr(torch.nn.functional, activation)(expected)
    tolerance = {"atol": 0.1, "rtol": 0.02} if dtype == torch.bfloat16 else {"atol": 1e-5, "rtol": 1e-5}
    torch.testing.assert_close(activated_linear(weight, bias, activation)(inputs), expected, **tolerance)


def test_a_layer_with_a_hook_or_a_computed_weight_stays_as_it_is() -> None:
    """Packing would drop the hook."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(*(torch.nn.Linear(64, 64) for _ in range(3)))
    model[0].register_forward_hook(lambda module, inputs, output: output * 2)
    torch.nn.utils.parametrizations.weight_norm(model[1])
    inputs = torch.randn(5, 64)
    expected = model(inputs)
    pack_linear_layers(model)
    torch.testing.assert_close(model(inputs), expected)
