import pytest
import torch

from mlfilter_core.compute import onednn
from tests.mlfilter_core.compute.dtypes import ONEDNN_DTYPES


def test_without_an_operator_pytorch_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn, "missing_operators", lambda: ["_linear_pointwise"])
    assert not onednn.is_available(torch.float32)
    assert not onednn.is_available(torch.bfloat16)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch without oneDNN")
def test_float32_is_always_supported_and_float64_never() -> None:
    assert onednn.is_available(torch.float32)
    assert not onednn.is_available(torch.float64)


@pytest.mark.parametrize("shape", [(5, 32), (3, 7, 32), (1, 1, 32), (0, 32), (4, 0, 32)])
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("dtype", ONEDNN_DTYPES)
@pytest.mark.parametrize("is_packed", [True, False])
@torch.inference_mode()
def test_it_is_the_linear_layer_of_pytorch(
    shape: tuple[int, ...], has_bias: bool, dtype: torch.dtype, is_packed: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs, weight = (torch.randn(size, generator=generator, dtype=dtype) for size in (shape, (16, 32)))
    bias = torch.randn(16, generator=generator, dtype=dtype) if has_bias else None
    outputs = onednn.linear(inputs, onednn.pack(weight) if is_packed else weight, bias)
    torch.testing.assert_close(outputs, torch.nn.functional.linear(inputs, weight, bias))


@torch.inference_mode()
def test_inputs_that_are_not_contiguous_are_read_in_their_order() -> None:
    inputs, weight = torch.randn(6, 8, 32), torch.randn(16, 32)
    for view in (inputs.transpose(0, 1), inputs[:, ::2], inputs[..., 1:].new_ones(6, 1, 1).expand(6, 8, 32)):
        torch.testing.assert_close(onednn.linear(view, weight, None), view @ weight.T)
