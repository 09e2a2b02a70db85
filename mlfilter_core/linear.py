"""Linear layers at the speed of the processor.

On a CPU, PyTorch multiplies float32 matrices with MKL, which uses half of what an AMD processor can do: 190
GFLOP/s on two cores of a Zen 5 EPYC, in the shapes of MiniLM, where oneDNN does 415. The operator is the one
that torch.compile puts in place of a linear layer. In bfloat16 PyTorch takes oneDNN by itself.
"""

from typing import cast

import torch

_HAS_ONEDNN = bool(torch._C._has_mkldnn) and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def linear(inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Returns `inputs @ weight.T + bias`, as `torch.nn.functional.linear` does.

    Args:
        inputs: (..., n_in).
        weight: (n_out, n_in), of the inputs' dtype and device.
        bias: (n_out,), or None.
    """
    if _HAS_ONEDNN and inputs.dtype == torch.float32 and inputs.device.type == "cpu" and not torch.is_grad_enabled():
        return cast(torch.Tensor, torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", [], ""))
    return torch.nn.functional.linear(inputs, weight, bias)


class FastLinear(torch.nn.Linear):
    """A linear layer that computes with `linear`."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Returns (..., n_out) for (..., n_in)."""
        return linear(input, self.weight, self.bias)


def use_fast_linear_layers(model: torch.nn.Module) -> None:
    """Replaces every plain linear layer of a model, in place; the new ones hold the same parameters."""
    for name, child in model.named_children():
        if type(child) is torch.nn.Linear:
            fast = FastLinear(child.in_features, child.out_features, child.bias is not None, device="meta")
            fast.weight, fast.bias = child.weight, child.bias
            setattr(model, name, fast)
        else:
            use_fast_linear_layers(child)
