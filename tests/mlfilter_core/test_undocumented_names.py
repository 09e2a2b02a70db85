"""Names that a library does not document: one module uses each, and the installed version still has it."""

import ast
import pickle
import sys
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import Any

import pytest
import torch
from transformers import BertConfig, PreTrainedTokenizerFast

CORE = Path(__file__).parents[2] / "mlfilter_core"
# Object, name, what needs it, where.
NAMES: list[tuple[Any, str, str, str]] = [
    (torch.ops.mkldnn, "torch.ops.mkldnn._is_mkldnn_bf16_supported", "packed weights", "compute/onednn.py"),
    (torch.ops.mkldnn, "torch.ops.mkldnn._linear_pointwise", "packed weights", "compute/onednn.py"),
    (torch.ops.mkldnn, "torch.ops.mkldnn._reorder_linear_weight", "packed weights", "compute/onednn.py"),
    *(
        (torch.nn.Linear(1, 1), f"torch.nn.Module.{name}", "packed weights", "compute/linear.py")
        for name in ("_parameters", "_forward_hooks", "_forward_pre_hooks")
    ),
    (torch, "torch._dynamo", "torch_compile", "encoder/optimizations.py"),
    (torch._dynamo.config, "torch._dynamo.config.suppress_errors", "torch_compile", "encoder/optimizations.py"),
    (
        *(BertConfig(), "transformers.PreTrainedConfig._attn_implementation"),
        *("the record of a model's attention", "encoder/forward_pass.py"),
    ),
    (
        *(PreTrainedTokenizerFast, "transformers.PreTrainedTokenizerFast._encode_plus"),
        *("the fast truncation of long texts", "encoder/long_texts.py"),
    ),
    (pickle, "pickle._Unpickler", "the light check of heads", "heads/light_widths.py"),
]


@pytest.mark.parametrize(("owner", "name", "need", "module"), NAMES, ids=[name for _, name, _, _ in NAMES])
def test_the_library_still_has_it(owner: Any, name: str, need: str, module: str) -> None:
    library = name.partition(".")[0]
    installed = f"Python {python_version()}" if library in sys.stdlib_module_names else f"{library} {version(library)}"
    assert hasattr(owner, name.rpartition(".")[2]), (
        f"{installed} no longer has {name}, needed for {need}; adapt mlfilter_core/{module}, or lower "
        f"the bound of {library} in pyproject.toml"
    )


def test_no_other_is_used_and_none_in_two_modules() -> None:
    used = sorted(
        {
            (path.relative_to(CORE).as_posix(), node.attr)
            for path in CORE.rglob("*.py")
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__")
            if not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"))
        }
    )
    listed = [(module, name.rpartition(".")[2]) for _, name, _, module in NAMES]
    assert used == sorted((module, name) for module, name in listed if name.startswith("_"))
