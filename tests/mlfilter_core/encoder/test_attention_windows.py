from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from tests.conftest import tiny_tokenizer
from tests.mlfilter_core.encoder.conftest import TOLERANCE, encode, reference, tiny

N_POSITIONS = 1200
WINDOW = 600  # more tokens than a trial has
TEXTS = ["ba be bi bo bu " * 200, "ba be", "bo bi ba " * 90]
SIZES = {
    "vocab_size": 288, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": N_POSITIONS, "pad_token_id": 0, "initializer_range": 0.3,
}  # fmt: skip
MOE = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32}


def saved(folder: Path, name: str, **settings: Any) -> Path:
    config = getattr(transformers, f"{name}Config")(**{**SIZES, **settings})
    torch.manual_seed(0)
    getattr(transformers, f"{name.removesuffix('Text')}{'Text' if name.endswith('Text') else ''}Model")(
        config
    ).save_pretrained(folder)
    tokenizer = tiny_tokenizer(model_max_length=N_POSITIONS, model_input_names=["input_ids", "attention_mask"])
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("name", "settings", "is_unpadded"),
    [
        ("Qwen2Moe", {"sliding_window": WINDOW, "use_sliding_window": True, "max_window_layers": 1, **MOE}, False),
        (
            "Llama4Text",
            {"attention_chunk_size": WINDOW, "head_dim": 8, "intermediate_size_mlp": 64, "num_local_experts": 2,
             "no_rope_layers": [1, 1], "layer_types": ["chunked_attention", "full_attention"], "moe_layers": []},
            False,
        ),
        ("Mistral", {"sliding_window": WINDOW}, True),
        ("Mistral", {"sliding_window": None}, True),
        ("Qwen2", {"sliding_window": WINDOW, "use_sliding_window": False}, True),
        ("Gemma3Text", {"sliding_window": WINDOW, "head_dim": 8, "query_pre_attn_scalar": 8}, True),
    ],
)  # fmt: skip
def test_windows_hold_for_long_texts(tmp_path: Path, name: str, settings: dict[str, Any], is_unpadded: bool) -> None:
    encoder = tiny(saved(tmp_path, name, **settings))
    assert encoder.forward_pass.is_unpadded == is_unpadded
    expected = reference(tmp_path, TEXTS, batch_size=1)
    np.testing.assert_allclose(encode(encoder, TEXTS), expected, atol=TOLERANCE * np.abs(expected).max())


def test_a_window_that_no_text_reaches_does_not_matter(tmp_path: Path) -> None:
    folder = saved(tmp_path, "Qwen2Moe", sliding_window=WINDOW, use_sliding_window=True, max_window_layers=1, **MOE)
    assert tiny(folder, max_length=500).forward_pass.is_unpadded
