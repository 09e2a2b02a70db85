import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import processors

from mlfilter_core.errors import EncoderError
from tests.conftest import TINY_MAX_LENGTH, tiny_bert, tiny_tokenizer
from tests.mlfilter_core.encoder.conftest import TEXTS, TOLERANCE, encode, reference, tiny


def model_asking_for_eos(folder: Path, template: str | None = "[CLS] $A", is_in_sequence: bool = False) -> Path:
    """A folder as E5-mistral's: `tokenizer_config.json` asks for an end token that `tokenizer.json` does not add."""
    tokenizer = tiny_tokenizer(eos_token="[SEP]")
    ids = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("[CLS]", "[SEP]")]
    own = None if template is None else processors.TemplateProcessing(single=template, special_tokens=ids)
    if is_in_sequence:
        own = processors.Sequence([processors.ByteLevel(), *([own] if own else [])])
    tokenizer.backend_tokenizer.post_processor = own
    tokenizer.save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "add_eos_token": True}))
    tiny_bert(seed=0).save_pretrained(folder)
    return folder


def test_an_end_token_that_is_asked_for_and_not_added_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = model_asking_for_eos(tmp_path)
    encoder = tiny(folder, pooling="last_token")
    (warning,) = encoder.warnings
    assert warning in caplog.text
    assert "tokenizer_config.json asks for [SEP]" in warning
    assert "tokenizer.json does not add it" in warning
    assert "set params.add_eos: true" in warning
    last = [int(ids[-1]) for ids in encoder.tokenize(TEXTS).input_ids]
    assert tiny_tokenizer().sep_token_id not in last
    np.testing.assert_allclose(encode(tiny(folder), TEXTS), reference(folder, TEXTS), atol=TOLERANCE)


@pytest.mark.parametrize("template", ["[CLS] $A", "$A", None])
@pytest.mark.parametrize("is_in_sequence", [False, True])
def test_an_end_token_is_added_on_request_also_to_cut_texts(
    tmp_path: Path, template: str | None, is_in_sequence: bool
) -> None:
    folder = model_asking_for_eos(tmp_path, template, is_in_sequence)
    encoder = tiny(folder, add_eos=True)
    assert encoder.warnings == ()
    assert encoder.settings.provenance()["add_eos"] is True
    tokenized = encoder.tokenize(TEXTS)
    assert tokenized.is_cut.any()
    for ids in tokenized.input_ids:
        assert ids[-1] == tiny_tokenizer().sep_token_id
        assert len(ids) <= TINY_MAX_LENGTH
        assert (ids[0] == tiny_tokenizer().cls_token_id) == (template == "[CLS] $A")


def test_an_end_token_is_not_added_twice(tmp_path: Path) -> None:
    folder = model_asking_for_eos(tmp_path, "[CLS] $A [SEP]")
    with_it, without = tiny(folder, add_eos=True), tiny(folder)
    for one, other in zip(with_it.tokenize(TEXTS).input_ids, without.tokenize(TEXTS).input_ids, strict=True):
        np.testing.assert_array_equal(one, other)
    assert without.warnings == ()


def test_a_tokenizer_without_an_end_token_cannot_add_one(tiny_model: Path) -> None:
    with pytest.raises(EncoderError, match="add_eos: the tokenizer has no end token"):
        tiny(tiny_model, add_eos=True)
