import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM, DeepseekV3Config, DeepseekV3Model, PreTrainedModel

from mlfilter_core.encoder.loaded_weights import recording_weights
from mlfilter_core.errors import EncoderError
from tests.conftest import tiny_bert, tiny_tokenizer
from tests.mlfilter_core.encoder.conftest import TEXTS, TOLERANCE, encode, tiny

Tensors = dict[str, torch.Tensor]
QUERY = "encoder.layer.1.attention.self.query"


def changed(tiny_model: Path, folder: Path, change: Callable[[Tensors], Tensors], **config: object) -> Path:
    """A copy of the tiny model with other tensors and settings."""
    shutil.copytree(tiny_model, folder)
    tensors = change(load_file(folder / "model.safetensors"))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, **config}))
    return folder


def without(start: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if not name.startswith(start)}


@pytest.mark.parametrize("part", [QUERY, f"{QUERY}.bias", "embeddings.word_embeddings", "embeddings.LayerNorm"])
def test_a_missing_weight_is_refused(tiny_model: Path, tmp_path: Path, part: str) -> None:
    folder = changed(tiny_model, tmp_path / "model", without(part))
    with pytest.raises(
        EncoderError, match=f"lacks . weights of BertModel, among them {part}.*random; download it again"
    ):
        tiny(folder)


def test_a_missing_layer_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    folder = changed(tiny_model, tmp_path / "model", dict, num_hidden_layers=3)
    with pytest.raises(EncoderError, match=r"lacks 16 weights of BertModel, among them encoder\.layer\.2\."):
        tiny(folder)


def test_tensors_under_another_prefix_are_named(tiny_model: Path, tmp_path: Path) -> None:
    folder = changed(
        tiny_model, tmp_path / "model", lambda tensors: {f"student.net.{name}": t for name, t in tensors.items()}
    )
    with pytest.raises(EncoderError, match=r"its files contain student\.net\.embeddings\..* instead: save the model"):
        tiny(folder)


def test_a_model_with_code_of_its_own_is_not_loaded_as_another(tiny_model: Path, tmp_path: Path) -> None:
    """As jina-embeddings-v2, whose configuration says bert."""

    def gated(tensors: Tensors) -> Tensors:
        return {name.replace("intermediate.dense", "mlp.gated_layers"): tensor for name, tensor in tensors.items()}

    folder = changed(tiny_model, tmp_path / "model", gated, auto_map={"AutoModel": "modeling.Other"})
    with pytest.raises(EncoderError, match=r"names code of its own, .* set params.trust_remote_code: true to run it"):
        tiny(folder)


def test_a_missing_pooler_is_fine(
    tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    folder = changed(tiny_model, tmp_path / "model", without("pooler"))
    assert tiny(folder).warnings == ()
    assert "pooler." not in "".join(capfd.readouterr()) + caplog.text
    np.testing.assert_array_equal(encode(tiny(folder), TEXTS), encode(tiny(tiny_model), TEXTS))


def test_surplus_layers_are_a_warning_and_a_surplus_head_is_none(
    tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = changed(tiny_model, tmp_path / "model", dict, num_hidden_layers=1)
    (warning,) = tiny(folder).warnings
    assert "contains 16 tensors of layers that BertModel does not have, among them encoder.layer.1." in warning
    assert warning in caplog.text

    torch.manual_seed(0)
    settings = tiny_bert(0).config.to_dict()
    BertForMaskedLM(BertConfig(**settings)).save_pretrained(tmp_path / "masked")
    tiny_tokenizer().save_pretrained(tmp_path / "masked")
    assert tiny(tmp_path / "masked").warnings == ()


def test_recording_leaves_transformers_as_it_was(tiny_model: Path) -> None:
    own = PreTrainedModel.__dict__["from_pretrained"]
    with pytest.raises(OSError, match="no_such_folder"), recording_weights():
        type(tiny_bert(0)).from_pretrained("./no_such_folder")
    assert PreTrainedModel.__dict__["from_pretrained"] is own
    with recording_weights() as found:
        loaded, info = type(tiny_bert(0)).from_pretrained(tiny_model, output_loading_info=True)
    assert isinstance(loaded, PreTrainedModel)
    assert info["missing_keys"] == found.missing == set()


def test_both_loads_of_a_model_give_the_same(tiny_model: Path) -> None:
    torch.manual_seed(1)
    first = encode(tiny(tiny_model), TEXTS)
    torch.manual_seed(2)
    np.testing.assert_allclose(encode(tiny(tiny_model), TEXTS), first, atol=TOLERANCE)


def test_a_missing_buffer_is_refused(tmp_path: Path) -> None:
    """DeepSeek's routing bias is one: transformers leaves it uninitialised."""
    config = DeepseekV3Config(
        vocab_size=288, hidden_size=32, intermediate_size=32, moe_intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, n_routed_experts=4, num_experts_per_tok=2, n_group=1,
        topk_group=1, first_k_dense_replace=1, q_lora_rank=8, kv_lora_rank=8, qk_nope_head_dim=8, qk_rope_head_dim=8,
        v_head_dim=8, max_position_embeddings=128, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    DeepseekV3Model(config).save_pretrained(tmp_path)
    tiny_tokenizer(model_input_names=["input_ids", "attention_mask"]).save_pretrained(tmp_path)
    tiny(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    (lost,) = (name for name in tensors if name.endswith("e_score_correction_bias"))
    save_file({name: tensor for name, tensor in tensors.items() if name != lost}, tmp_path / "model.safetensors")
    with pytest.raises(EncoderError, match=f"lacks 1 weights of DeepseekV3Model, among them {lost}"):
        tiny(tmp_path)


def test_models_that_load_at_once_do_not_mix_what_they_lack(tiny_model: Path, tmp_path: Path) -> None:
    bad = changed(tiny_model, tmp_path / "model", without(QUERY))

    def outcome(folder: Path) -> str:
        try:
            tiny(folder)
        except EncoderError:
            return "refused"
        return "loaded"

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(outcome, [tiny_model, bad] * 4))
    assert found == ["loaded", "refused"] * 4
