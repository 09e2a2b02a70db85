import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Dense, LayerNorm, Pooling
from transformers import ModernBertConfig, ModernBertModel

from mlfilter_core.encoder.encoder import Encoder
from mlfilter_core.encoder.loading import load_encoder
from mlfilter_core.encoder.model_files import ModelFiles, resolve_model
from mlfilter_core.encoder.settings import EncoderSettings
from mlfilter_core.errors import ConfigError, EncoderError
from tests.conftest import TINY_DIM, tiny_tokenizer
from tests.mlfilter_core.encoder.conftest import TEXTS, TOLERANCE, Folder, encode, tiny, token_embeddings


def test_bfloat16_stays_close_to_float32(minilm: ModelFiles, minilm_encoder: Encoder) -> None:
    encoder = load_encoder(minilm, EncoderSettings(model_dtype="bfloat16"), "cpu")
    texts = TEXTS[1:-1]
    in_bfloat16, in_float32 = encode(encoder, texts), encode(minilm_encoder, texts)
    assert in_bfloat16.dtype == np.float32
    assert not np.array_equal(in_bfloat16, in_float32)
    assert (in_bfloat16 * in_float32).sum(axis=1).min() > 0.999
    np.testing.assert_allclose(np.linalg.norm(in_bfloat16, axis=1), 1, atol=TOLERANCE)


POOL: dict[str | None, Callable[[torch.Tensor], torch.Tensor]] = {
    None: lambda tokens: tokens.mean(dim=0),
    "mean": lambda tokens: tokens.mean(dim=0),
    "cls": lambda tokens: tokens[0],
    "max": lambda tokens: tokens.amax(dim=0),
    "last_token": lambda tokens: tokens[-1],
}


@pytest.mark.parametrize("pooling", POOL)
def test_a_plain_folder_is_pooled_as_asked_and_by_the_mean_otherwise(tiny_model: Path, pooling: str | None) -> None:
    encoder = tiny(tiny_model, pooling=pooling)
    expected = np.stack([POOL[pooling](token_embeddings(tiny_model, text)).numpy() for text in TEXTS])
    np.testing.assert_allclose(encode(encoder, TEXTS), expected, atol=TOLERANCE)
    assert encoder.pooling == (pooling or "mean")


def test_a_pooling_replaces_that_of_a_saved_model(save_modules: Folder) -> None:
    folder = save_modules(Pooling(TINY_DIM, "cls"), Normalize())
    vectors = encode(tiny(folder, pooling="max"), TEXTS)
    expected = np.stack([POOL["max"](token_embeddings(folder, text)).numpy() for text in TEXTS])
    np.testing.assert_allclose(vectors, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=TOLERANCE)


def test_an_absent_device_is_refused(tiny_model: Path) -> None:
    with pytest.raises(ConfigError, match="device: 'gpu' is not available on this machine"):
        tiny(tiny_model, "gpu")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", b'{"model_type": "no such architecture"}'),
        ("config.json", b"{"),
        ("model.safetensors", b"\0" * 99),
    ],
)
def test_a_folder_that_is_no_model_is_refused(tiny_model: Path, tmp_path: Path, name: str, content: bytes) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "broken")
    (folder / name).write_bytes(content)
    with pytest.raises(EncoderError, match=f"embedding_model: {folder} does not load: .+"):
        tiny(folder)


def test_a_tokenizer_without_a_pad_token_pads_with_another(
    tiny_model: Path, tiny_encoder: Encoder, tmp_path: Path
) -> None:
    folder = tmp_path / "no-pad"
    shutil.copytree(tiny_model, folder)
    tiny_tokenizer(pad_token=None).save_pretrained(folder)
    encoder = load_encoder(resolve_model(str(folder)), EncoderSettings(), "cpu")
    np.testing.assert_allclose(encode(encoder, TEXTS), encode(tiny_encoder, TEXTS), atol=TOLERANCE)


def test_a_size_is_found_where_none_is_asked_for(tiny_files: ModelFiles, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "mlfilter_core"):
        encoder = load_encoder(tiny_files, EncoderSettings(), "cpu")
    (said,) = [record.message for record in caplog.records if record.message.startswith("encoder ")]
    assert said.endswith(f"float32 on cpu, unpadded attention, {str(encoder).partition('attention, ')[2]}")
    assert f"batches of at most {encoder.max_batch_tokens} tokens (the smallest of the fastest" in said
    given = load_encoder(tiny_files, EncoderSettings(), "cpu", 700)
    assert str(given) == "float32 on cpu, unpadded attention, batches of at most 700 tokens (as asked for)"


def test_a_pooling_that_the_layer_after_it_does_not_take_is_refused(save_modules: Folder) -> None:
    folder = save_modules(Pooling(TINY_DIM, ("cls", "mean")), Dense(2 * TINY_DIM, 24))
    with pytest.raises(EncoderError, match=f"mean gives {TINY_DIM} values, but the layer after it .* takes 64"):
        tiny(folder, pooling="mean")
    with pytest.raises(EncoderError, match="has no pooling to replace"):
        tiny(save_modules(), pooling="mean")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_layers_after_the_transformer_and_rotary_frequencies_stay_in_float32(tmp_path: Path, dtype: str) -> None:
    config = ModernBertConfig(
        vocab_size=400, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=128, pad_token_id=0, cls_token_id=2, bos_token_id=2, sep_token_id=3, eos_token_id=3,
    )  # fmt: skip
    torch.manual_seed(0)
    ModernBertModel(config).save_pretrained(tmp_path / "plain")
    tiny_tokenizer(model_input_names=["input_ids", "attention_mask"]).save_pretrained(tmp_path / "plain")
    modules = [Transformer(str(tmp_path / "plain")), Pooling(32), Dense(32, 24), LayerNorm(24)]
    SentenceTransformer(modules=modules, device="cpu").save(str(tmp_path / "saved"), create_model_card=False)
    modules = tiny(tmp_path / "saved", model_dtype=dtype).forward_pass.modules
    transformer, after = modules[0].model, modules[1:]
    assert transformer.dtype == getattr(torch, dtype)
    frequencies = {name: buffer.dtype for name, buffer in transformer.named_buffers() if "inv_freq" in name}
    assert frequencies
    assert set(frequencies.values()) == {torch.float32}
    expected = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    for own, theirs in zip(after, list(expected)[1:], strict=True):
        for (name, one), (_, other) in zip(own.named_parameters(), theirs.named_parameters(), strict=True):
            assert torch.equal(one, other), name


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("sentence_transformers.sparse_encoder.models.SpladePooling", "SpladePooling; .* It gives sparse embeddings"),
        ("sentence_transformers.models.LSTM", "LSTM; supported are Transformer, StaticEmbedding, Pooling"),
    ],
)
def test_a_module_that_is_not_supported_is_named(save_modules: Folder, kind: str, words: str) -> None:
    folder = save_modules(Pooling(TINY_DIM))
    saved = json.loads((folder / "modules.json").read_text())
    saved[1]["type"] = kind
    (folder / "modules.json").write_text(json.dumps(saved))
    with pytest.raises(EncoderError, match=f"contains the module {words}"):
        tiny(folder)


def test_a_model_of_unknown_type_with_its_own_code_names_the_parameter(tiny_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "new")
    settings = json.loads((folder / "config.json").read_text())
    own = {"model_type": "new", "auto_map": {"AutoConfig": "configuration.NewConfig", "AutoModel": "modeling.NewModel"}}
    (folder / "config.json").write_text(json.dumps({**settings, **own}))
    with pytest.raises(EncoderError, match=r"names code of its own: read it, and set params\.trust_remote_code: true"):
        tiny(folder)
