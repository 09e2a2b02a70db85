import shutil
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers.base.modules import Normalize
from sentence_transformers.sentence_transformer.modules import Dense, Pooling
from tokenizers import processors

from mlfilter_core.encoder.encoder import Encoder
from mlfilter_core.encoder.loading import load_encoder
from mlfilter_core.encoder.model_files import ModelFiles
from mlfilter_core.encoder.settings import EncoderSettings
from mlfilter_core.errors import EncoderError
from tests.conftest import TINY_DIM, TINY_MAX_LENGTH, tiny_bert, tiny_tokenizer
from tests.mlfilter_core.encoder.conftest import TEXTS, TOLERANCE, Folder, encode, reference, tiny


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
