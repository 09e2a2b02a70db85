import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from sentence_transformers.base.modules import Normalize
from sentence_transformers.sentence_transformer.modules import Dense, Dropout, LayerNorm, Pooling
from tokenizers import processors
from transformers import (
    BigBirdConfig,
    BigBirdModel,
    LlamaConfig,
    LlamaModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from mlfilter_core.encoder.encoder import Encoder
from mlfilter_core.encoder.loading import load_encoder
from mlfilter_core.encoder.model_files import ModelFiles, resolve_model
from mlfilter_core.encoder.settings import EncoderSettings
from mlfilter_core.errors import EncoderError
from tests.conftest import TINY_DIM, TINY_MAX_LENGTH, tiny_bert, tiny_tokenizer
from tests.mlfilter_core.encoder.conftest import TEXTS, TOLERANCE, Folder, encode, reference, tiny

TINY = {"hidden_size": TINY_DIM, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


@pytest.mark.parametrize(
    ("pooling", "include_prompt"), [("cls", True), ("mean", True), ("mean", False), ("lasttoken", True)]
)
def test_a_saved_model_keeps_its_pooling_dense_layer_and_default_prompt(
    save_modules: Folder, pooling: str, include_prompt: bool
) -> None:
    folder = save_modules(
        Pooling(TINY_DIM, pooling, include_prompt=include_prompt),
        Dense(TINY_DIM, 24),
        Normalize(),
        prompts={"find": "find: "},
        default_prompt_name="find",
    )
    encoder = tiny(folder)
    embeddings = encode(encoder, TEXTS)
    np.testing.assert_allclose(embeddings, reference(folder, TEXTS), atol=TOLERANCE)
    assert np.abs(embeddings - reference(folder, TEXTS, prompt="")).max() > 0.01, "the prompt had no effect"
    assert encoder.provenance() == {
        "dim": 24,
        "max_length": TINY_MAX_LENGTH,
        "pooling": "last_token" if pooling == "lasttoken" else pooling,
        "is_normalized": True,
        "prompt": "find: ",
        "device": "cpu",
        "compute_dtype": "float32",
        "attention": "unpadded",
        "is_compiled": False,
        "max_batch_tokens": encoder.max_batch_tokens,
        "why_max_batch_tokens": encoder.why_max_batch_tokens,
    }


def test_a_prompt_replaces_the_default_prompt_and_an_empty_one_removes_it(save_modules: Folder) -> None:
    folder = save_modules(
        Pooling(TINY_DIM, "mean", include_prompt=False), prompts={"find": "find: "}, default_prompt_name="find"
    )
    for prompt in ("other words: ", ""):
        np.testing.assert_allclose(
            encode(tiny(folder, prompt=prompt), TEXTS), reference(folder, TEXTS, prompt=prompt), atol=TOLERANCE
        )


def test_a_prompt_is_set_before_each_text(tiny_model: Path, tiny_encoder: Encoder) -> None:
    prompted = encode(tiny(tiny_model, prompt="query: "), ["one", "two"])
    np.testing.assert_allclose(prompted, encode(tiny_encoder, ["query: one", "query: two"]), atol=TOLERANCE)


def test_several_poolings_stand_side_by_side(save_modules: Folder) -> None:
    folder = save_modules(Pooling(TINY_DIM, ("cls", "mean")))
    encoder = tiny(folder)
    assert (encoder.dim, encoder.pooling, encoder.is_normalized) == (2 * TINY_DIM, "cls+mean", False)
    np.testing.assert_allclose(encode(encoder, TEXTS), reference(folder, TEXTS), atol=TOLERANCE)


def test_more_tokens_than_positions_are_refused(tiny_model: Path, minilm: ModelFiles) -> None:
    with pytest.raises(
        EncoderError, match=r"max_length is 65, but the model has positions for 64 tokens; set .* 64 or less"
    ):
        tiny(tiny_model, max_length=65)
    with pytest.raises(EncoderError, match="max_length is 513, but the model has positions for 512 tokens"):
        load_encoder(minilm, EncoderSettings(max_length=513), "cpu")


def test_without_a_stated_maximum_the_position_table_is_the_maximum(tiny_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "unlimited")
    tiny_tokenizer(model_max_length=10**30).save_pretrained(folder)
    assert tiny(folder).max_length == TINY_MAX_LENGTH


def test_a_tokenizer_with_other_token_types_is_refused(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    ids = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:1 $A:0 [SEP]:0", special_tokens=ids
    )
    tokenizer.save_pretrained(tmp_path)
    tiny_bert(seed=0).save_pretrained(tmp_path)
    with pytest.raises(EncoderError, match="token types other than 0"):
        tiny(tmp_path)


def test_a_prompt_that_leaves_no_room_for_the_text_is_refused(tiny_files: ModelFiles) -> None:
    with pytest.raises(EncoderError, match=r"the prompt alone has 12 tokens, and max_length is 12: every document"):
        load_encoder(tiny_files, EncoderSettings(prompt="ba " * 10, max_length=12), "cpu")
    load_encoder(tiny_files, EncoderSettings(prompt="ba " * 10, max_length=13), "cpu")


def test_a_folder_that_counts_padding_positions_is_capped(tmp_path: Path) -> None:
    """XLM-RoBERTa's table has 514 rows for 512 tokens, and some folders state 514."""
    torch.manual_seed(0)
    config = XLMRobertaConfig(vocab_size=400, max_position_embeddings=66, type_vocab_size=1, pad_token_id=1, **TINY)
    XLMRobertaModel(config).save_pretrained(tmp_path)
    tokenizer = tiny_tokenizer(model_max_length=66, model_input_names=["input_ids", "attention_mask"])
    tokenizer.save_pretrained(tmp_path)
    encoder = tiny(tmp_path)
    assert encoder.max_length == 64
    assert encoder.tokenize(TEXTS).n_tokens.max() == 64
    encode(encoder, TEXTS)
    with pytest.raises(EncoderError, match="max_length is 65, but the model has positions for 64"):
        tiny(tmp_path, max_length=65)


def test_a_literal_padding_token_takes_no_position_where_the_model_counts_none(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = XLMRobertaConfig(
        vocab_size=400, max_position_embeddings=66, type_vocab_size=1, pad_token_id=0, initializer_range=0.5, **TINY
    )
    XLMRobertaModel(config).save_pretrained(tmp_path)
    tiny_tokenizer(model_input_names=["input_ids", "attention_mask"]).save_pretrained(tmp_path)
    texts = ["ba [PAD] be [PAD] [PAD] bi", "[PAD]", "bo [CLS] [SEP] [MASK] [UNK] bu", "ba be", "[PAD] ba"]
    encoder = tiny(tmp_path)
    assert encoder.forward_pass.is_unpadded
    np.testing.assert_allclose(encode(encoder, texts), reference(tmp_path, texts), atol=TOLERANCE)


@pytest.mark.parametrize(
    ("modules", "is_normalized"),
    [
        ([Pooling(TINY_DIM), Normalize()], True),
        ([Pooling(TINY_DIM), Normalize(), Dense(TINY_DIM, 24)], False),
        ([Pooling(TINY_DIM), Dense(TINY_DIM, 24), Normalize()], True),
        ([Pooling(TINY_DIM), Normalize(), LayerNorm(TINY_DIM)], False),
        ([Pooling(TINY_DIM), Normalize(), Dropout(0.1)], True),
        ([Pooling(TINY_DIM)], False),
    ],
)
def test_embeddings_are_said_to_be_normalized_where_they_are(
    save_modules: Folder, modules: list[torch.nn.Module], is_normalized: bool
) -> None:
    encoder = tiny(save_modules(*modules))
    lengths = np.linalg.norm(encode(encoder, TEXTS), axis=1)
    assert encoder.is_normalized == is_normalized == bool(np.allclose(lengths, 1, atol=1e-5))


def test_the_width_that_a_folder_states_is_sentence_transformers(save_modules: Folder) -> None:
    folder = save_modules(Pooling(TINY_DIM), Normalize(), truncate_dim=8)
    encoder = tiny(folder)
    assert (encoder.dim, encoder.is_normalized) == (8, False)
    np.testing.assert_allclose(encode(encoder, TEXTS), reference(folder, TEXTS), atol=TOLERANCE)


@pytest.mark.parametrize("stated", [None, 8])
def test_a_job_chooses_the_width_and_gets_unit_vectors(save_modules: Folder, stated: int | None) -> None:
    folder = save_modules(Pooling(TINY_DIM), Normalize(), truncate_dim=stated)
    encoder = tiny(folder, embedding_dim=12)
    assert (encoder.dim, encoder.is_normalized) == (12, True)
    assert encoder.settings.provenance()["embedding_dim"] == 12
    expected = reference(folder, TEXTS, truncate_dim=12, normalize_embeddings=True)
    np.testing.assert_allclose(encode(encoder, TEXTS), expected, atol=TOLERANCE)


def test_a_model_that_does_not_normalise_is_only_cut(save_modules: Folder) -> None:
    folder = save_modules(Pooling(TINY_DIM))
    encoder = tiny(folder, embedding_dim=12)
    assert not encoder.is_normalized
    np.testing.assert_allclose(encode(encoder, TEXTS), reference(folder, TEXTS)[:, :12], atol=TOLERANCE)


def test_more_dimensions_than_there_are_are_refused(save_modules: Folder) -> None:
    with pytest.raises(EncoderError, match="embedding_dim is 33, but the model gives 32 dimensions"):
        tiny(save_modules(Pooling(TINY_DIM), Normalize()), embedding_dim=33)


def test_the_settings_of_the_tokenizers_call_are_applied_or_refused(save_modules: Folder) -> None:
    folder = save_modules(Pooling(TINY_DIM))
    file = folder / "sentence_bert_config.json"
    own = json.loads(file.read_text())
    file.write_text(json.dumps({**own, "processing_kwargs": {"text": {"max_length": 16, "padding": "longest"}}}))
    encoder = tiny(folder)
    assert encoder.max_length == 16
    np.testing.assert_allclose(encode(encoder, TEXTS), reference(folder, TEXTS), atol=TOLERANCE)
    assert tiny(folder, max_length=20).max_length == 20
    file.write_text(json.dumps({**own, "processing_kwargs": {"common": {"add_special_tokens": False}}}))
    with pytest.raises(EncoderError, match=r"processing_kwargs .* sets add_special_tokens: False, which is not"):
        tiny(folder)


def rotary(folder: Path, **rope: object) -> Path:
    """A model with such positions, which change above 64 tokens."""
    config = LlamaConfig(
        vocab_size=288, num_key_value_heads=2, max_position_embeddings=256, pad_token_id=0, initializer_range=0.3,
        rope_parameters={"rope_theta": 10000.0, "original_max_position_embeddings": 64, **rope}, **TINY,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaModel(config).save_pretrained(folder)
    tokenizer = tiny_tokenizer(model_max_length=256, model_input_names=["input_ids", "attention_mask"])
    tokenizer.save_pretrained(folder)
    return folder


def test_a_long_text_does_not_change_the_rotary_positions_of_short_ones(tmp_path: Path) -> None:
    folder = rotary(
        tmp_path, rope_type="longrope", factor=4.0, short_factor=[1.0] * 8, long_factor=[1.5, 2, 4, 8, 8, 8, 8, 8]
    )
    texts = ["ba be bi " * 60, "ba be", "bo " * 40, "bu bo " * 90]
    encoder = load_encoder(resolve_model(str(folder)), EncoderSettings(), "cpu", 4096)
    assert encoder.tokenize(texts).n_tokens.max() > 64
    np.testing.assert_allclose(encode(encoder, texts), reference(folder, texts, batch_size=1), atol=TOLERANCE)


def test_rotary_positions_that_depend_on_earlier_texts_are_refused_above_their_limit(tmp_path: Path) -> None:
    folder = rotary(tmp_path, rope_type="dynamic", factor=4.0)
    with pytest.raises(EncoderError, match=r"dynamic: above 64 tokens, .* set params\.max_length to 64 or less"):
        tiny(folder)
    texts = ["ba be bi " * 60, "ba be"]
    expected = reference(folder, texts, max_length=64, batch_size=1)
    np.testing.assert_allclose(encode(tiny(folder, max_length=64), texts), expected, atol=TOLERANCE)


@pytest.mark.parametrize(("name", "settings"), [
    ("GPT2", {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 64}),
    ("OPT", {"hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 32, "num_hidden_layers": 1,
             "num_attention_heads": 2, "max_position_embeddings": 64}),
])  # fmt: skip
def test_tables_of_positions_have_several_names(tmp_path: Path, name: str, settings: dict[str, int]) -> None:
    config = getattr(transformers, f"{name}Config")(vocab_size=288, pad_token_id=0, **settings)
    getattr(transformers, f"{name}Model")(config).save_pretrained(tmp_path)
    tokenizer = tiny_tokenizer(model_max_length=10**30, model_input_names=["input_ids", "attention_mask"])
    tokenizer.save_pretrained(tmp_path)
    encoder = tiny(tmp_path)
    assert encoder.max_length == 64
    np.testing.assert_allclose(encode(encoder, TEXTS), reference(tmp_path, TEXTS, max_length=64), atol=TOLERANCE)
    with pytest.raises(EncoderError, match="max_length is 65, but the model has positions for 64"):
        tiny(tmp_path, max_length=65)


def test_a_stated_width_that_cuts_nothing_leaves_unit_vectors(save_modules: Folder) -> None:
    encoder = tiny(save_modules(Pooling(TINY_DIM), Normalize(), truncate_dim=TINY_DIM))
    assert (encoder.dim, encoder.is_normalized) == (TINY_DIM, True)


def test_attention_that_depends_on_the_batch_is_refused(tmp_path: Path) -> None:
    config = BigBirdConfig(vocab_size=288, attention_type="block_sparse", max_position_embeddings=128, **TINY)
    BigBirdModel(config).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(EncoderError, match=r"has block_sparse attention, .* set attention_type: original_full"):
        tiny(tmp_path)
