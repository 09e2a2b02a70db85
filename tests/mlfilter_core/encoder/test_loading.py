import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize
from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding

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


def test_an_encoder_without_token_embeddings_is_refused(tmp_path: Path) -> None:
    static = StaticEmbedding(tiny_tokenizer(), embedding_dim=8)
    SentenceTransformer(modules=[static], device="cpu").save(str(tmp_path / "static"), create_model_card=False)
    with pytest.raises(EncoderError, match="starts with StaticEmbedding; only Hugging Face transformers that give one"):
        tiny(tmp_path / "static")


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
