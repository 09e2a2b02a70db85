from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize
from sentence_transformers.sentence_transformer.modules import StaticEmbedding

from mlfilter_core.errors import EncoderError
from tests.conftest import tiny_tokenizer
from tests.mlfilter_core.encoder.conftest import TEXTS, TOLERANCE, encode, reference, tiny

DIM = 24


@pytest.fixture
def static(tmp_path: Path) -> Path:
    """A folder as sentence-transformers saves it."""
    torch.manual_seed(0)
    modules = [StaticEmbedding(tiny_tokenizer(), embedding_dim=DIM), Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save(str(tmp_path / "static"), create_model_card=False)
    return tmp_path / "static"


def test_the_mean_of_the_tokens_is_sentence_transformers(static: Path) -> None:
    encoder = tiny(static)
    np.testing.assert_allclose(encode(encoder, TEXTS), reference(static, TEXTS), atol=TOLERANCE)
    assert (encoder.dim, encoder.pooling, encoder.is_normalized, encoder.max_length) == (DIM, "mean", True, None)
    assert encoder.provenance()["attention"] == "no"
    assert encoder.tokenize(["ba be"]).n_tokens.tolist() == [2], "no special tokens"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_folder_of_model2vec_is_read(tmp_path: Path, dtype: torch.dtype) -> None:
    """Vectors of which several tokens share one, with a weight for each token."""
    n_tokens = len(tiny_tokenizer())
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(40, DIM, generator=generator).to(dtype)
    mapping = torch.randint(0, 40, (n_tokens,), generator=generator)
    weights = torch.rand(n_tokens, generator=generator, dtype=torch.float64)
    save_file({"embeddings": vectors, "mapping": mapping, "weights": weights}, tmp_path / "model.safetensors")
    tiny_tokenizer().backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "modules.json").write_text(
        '[{"idx": 0, "name": "0", "path": ".", "type": "sentence_transformers.models.StaticEmbedding"}]'
    )
    found = encode(tiny(tmp_path), TEXTS)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, reference(tmp_path, TEXTS), atol=TOLERANCE)


def test_texts_are_cut_at_the_jobs_length_or_at_the_tokenizers(static: Path) -> None:
    tokenized = tiny(static, max_length=5).tokenize(TEXTS)
    assert tokenized.n_tokens.max() == 5
    assert tokenized.is_cut.any()
    tokenizer = tiny_tokenizer().backend_tokenizer
    tokenizer.enable_truncation(7)
    tokenizer.save(str(next(static.rglob("tokenizer.json"))))
    encoder = tiny(static)
    assert encoder.max_length == 7
    np.testing.assert_allclose(encode(encoder, TEXTS), reference(static, TEXTS), atol=TOLERANCE)


def test_a_text_without_tokens_is_zero_as_in_sentence_transformers(static: Path) -> None:
    np.testing.assert_array_equal(encode(tiny(static), ["", "ba"])[0], np.zeros(DIM, np.float32))
    np.testing.assert_array_equal(reference(static, ["", "ba"])[0], np.zeros(DIM, np.float32))


def test_prompt_and_width_are_applied(static: Path) -> None:
    found = encode(tiny(static, prompt="be: ", embedding_dim=8), TEXTS)
    expected = reference(static, TEXTS, prompt="be: ", truncate_dim=8, normalize_embeddings=True)
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)


def test_a_prompt_that_leaves_no_room_for_the_text_is_refused(static: Path) -> None:
    with pytest.raises(EncoderError, match=r"the prompt alone has 3 tokens, and max_length is 3: every document"):
        tiny(static, prompt="ba be bi", max_length=3)
    tiny(static, prompt="ba be bi", max_length=4)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"pooling": "cls"}, "pooling: static embeddings are means"),
        ({"add_eos": True}, "have no end token and no padding"),
        ({"pad_to_max_length": True}, "have no end token and no padding"),
    ],
)
def test_settings_without_a_meaning_are_refused(static: Path, settings: dict[str, object], words: str) -> None:
    with pytest.raises(EncoderError, match=words):
        tiny(static, **settings)
