import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from transformers import AutoConfig, AutoModel, Qwen2Config, Qwen2Model

from mlfilter_core.encoder.encoder import Encoder
from mlfilter_core.encoder.loading import load_encoder
from mlfilter_core.encoder.model_files import ModelFiles
from mlfilter_core.encoder.settings import EncoderSettings
from tests.conftest import TINY_DIM, TINY_MAX_LENGTH, tiny_tokenizer
from tests.mlfilter_core.encoder.conftest import TEXTS, TOLERANCE, encode, reference, tiny


def test_padding_to_the_maximum_length_changes_no_embedding(tiny_model: Path, tiny_encoder: Encoder) -> None:
    encoder = tiny(tiny_model, max_length=40, pad_to_max_length=True)
    widths = []
    encoder.forward_pass.model.embeddings.register_forward_hook(lambda *call: widths.append(call[2].shape[1]))
    np.testing.assert_allclose(
        encode(encoder, TEXTS[1:8], 2), encode(tiny(tiny_model, max_length=40), TEXTS[1:8]), atol=TOLERANCE
    )
    assert set(widths) == {40}


def test_a_tokenizer_that_pads_on_the_left_gives_the_vectors_of_unpadded_texts(
    tiny_model: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "left")
    tiny_tokenizer(padding_side="left").save_pretrained(folder)
    embeddings = encode(tiny(folder), TEXTS)
    np.testing.assert_allclose(embeddings, reference(folder, TEXTS, batch_size=1), atol=TOLERANCE)
    np.testing.assert_allclose(encode(tiny(folder, pad_to_max_length=True), TEXTS), embeddings, atol=TOLERANCE)


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_a_causal_model_pooled_at_its_last_token_gives_the_vectors_of_sentence_transformers(
    tmp_path: Path, padding_side: str
) -> None:
    config = Qwen2Config(
        vocab_size=len(tiny_tokenizer()),
        hidden_size=TINY_DIM,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=64,
        initializer_range=0.3,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        Qwen2Model(config).save_pretrained(tmp_path / "qwen2")
    names = ["input_ids", "attention_mask"]
    tiny_tokenizer(padding_side=padding_side, model_input_names=names).save_pretrained(tmp_path / "qwen2")
    modules = [Transformer(str(tmp_path / "qwen2")), Pooling(TINY_DIM, "lasttoken"), Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save(str(tmp_path / "saved"), create_model_card=False)
    expected = reference(tmp_path / "saved", TEXTS)
    np.testing.assert_allclose(encode(tiny(tmp_path / "saved"), TEXTS), expected, atol=TOLERANCE)
    np.testing.assert_allclose(encode(tiny(tmp_path / "saved"), TEXTS, batch_size=1), expected, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("model_type", "is_unpadded", "config"),
    [
        ("roberta", True, {"max_position_embeddings": TINY_MAX_LENGTH + 1}),
        ("distilbert", True, {"dim": TINY_DIM, "n_layers": 2, "n_heads": 2, "hidden_dim": 64}),
        # Every other layer sees 4 tokens to each side.
        (
            "modernbert",
            True,
            {"local_attention": 8, "global_attn_every_n_layers": 2, "initializer_cutoff_factor": 30.0},
        ),
        # Its attention adds a bias by distance, which the interface does not support.
        ("mpnet", False, {"max_position_embeddings": TINY_MAX_LENGTH + 2}),
    ],
)
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_other_architectures_give_the_vectors_of_sentence_transformers(
    tmp_path: Path, model_type: str, is_unpadded: bool, config: dict[str, Any], pooling: str
) -> None:
    sizes = {"hidden_size": TINY_DIM, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    names = ["input_ids", "attention_mask"]
    tokenizer = tiny_tokenizer(model_input_names=names)
    limits = {
        "vocab_size": len(tokenizer),
        "pad_token_id": 0,
        "max_position_embeddings": TINY_MAX_LENGTH,
        "initializer_range": 0.3,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModel.from_config(  # type: ignore[no-untyped-call]
            AutoConfig.for_model(model_type, **{**sizes, **limits, **config})
        )
    model.save_pretrained(tmp_path / "plain")
    tokenizer.save_pretrained(tmp_path / "plain")
    modules = [Transformer(str(tmp_path / "plain")), Pooling(TINY_DIM, pooling)]
    SentenceTransformer(modules=modules, device="cpu").save(str(tmp_path / "saved"), create_model_card=False)
    encoder = tiny(tmp_path / "saved")
    assert encoder.forward_pass.is_unpadded == is_unpadded
    expected = reference(tmp_path / "saved", TEXTS)
    np.testing.assert_allclose(encode(encoder, TEXTS), expected, atol=TOLERANCE)
    by_openvino = tiny(tmp_path / "saved", has_openvino=True)
    assert by_openvino.provenance()["attention"] == "openvino"
    np.testing.assert_allclose(encode(by_openvino, TEXTS), expected, atol=TOLERANCE)
    distances = np.linalg.norm(expected[1:] - expected[:-1], axis=1)
    assert distances.min() > 0.1, "the model gives all texts the same embedding, so the test proves nothing"


def test_other_errors_of_a_device_are_errors(tiny_files: ModelFiles) -> None:
    encoder = load_encoder(tiny_files, EncoderSettings(), "cpu", 256)

    def fail(*args: Any) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    encoder.forward_pass.model.get_submodule("embeddings").register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        encode(encoder, TEXTS)
