import pytest
import torch

from mlfilter_core.compute.linear import PackedLinear, activated_linear, linear, pack_linear_layers


@pytest.mark.parametrize("shape", [(5, 32), (3, 7, 32), (1, 1, 32), (0, 32), (4, 0, 32)])
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("is_inference", [True, False])
def test_it_is_the_linear_layer_of_pytorch(
    shape: tuple[int, ...], has_bias: bool, dtype: torch.dtype, is_inference: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs, weight = (torch.randn(size, generator=generator, dtype=dtype) for size in (shape, (16, 32)))
    bias = torch.randn(16, generator=generator, dtype=dtype) if has_bias else None
    with torch.inference_mode(is_inference):
        outputs = linear(inputs, weight, bias)
    torch.testing.assert_close(outputs, torch.nn.functional.linear(inputs, weight, bias))


def test_inputs_that_are_not_contiguous_are_read_in_their_order() -> None:
    inputs, weight = torch.randn(6, 8, 32), torch.randn(16, 32)
    with torch.inference_mode():
        for view in (inputs.transpose(0, 1), inputs[:, ::2], inputs[..., 1:].new_ones(6, 1, 1).expand(6, 8, 32)):
            torch.testing.assert_close(linear(view, weight, None), view @ weight.T)


HAS_BFLOAT16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16] if HAS_BFLOAT16 else [torch.float32])
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
