"""Torch modules with random weights, saved as checkpoints, and the check of their heads."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from mlfilter_core.heads.head import Head, score

DIM = 8
INPUTS = torch.randn(16, DIM, generator=torch.Generator().manual_seed(0))
L = nn.Linear


def randomised(module: nn.Module, seed: int = 1) -> nn.Module:
    """Returns the module with random parameters and running statistics, for inference."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=generator))
            if name.endswith(("running_var", "std")):
                tensor.copy_(tensor.square() + 0.5)
    return module.eval()


def save(module: nn.Module, path: Path, facts: dict[str, Any] | None = None) -> Path:
    state = module.state_dict()
    if path.suffix == ".safetensors":
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    else:
        torch.save(state, path)
    if facts is not None:
        path.with_name(f"{path.name}.json").write_text(json.dumps(facts))
    return path


def check(head: Head, module: nn.Module) -> None:
    with torch.inference_mode():
        expected = module(INPUTS).numpy()
    np.testing.assert_allclose(score([head], INPUTS.numpy()), expected, rtol=1e-4, atol=1e-4)
