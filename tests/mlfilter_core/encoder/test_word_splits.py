from typing import Any

import pytest
from tokenizers import Tokenizer, models
from tokenizers import normalizers as norm
from tokenizers import pre_tokenizers as pre
from transformers import PreTrainedTokenizerFast

from mlfilter_core.encoder.word_splits import split_into_words
from tests.mlfilter_core.encoder.hard_texts import PROSE, hard_texts
from tests.mlfilter_core.encoder.whole_texts import SPACE, TEXTS, bpe_of_whole_texts

GEMMA = norm.Replace(" ", SPACE), pre.Split(" ", "merged_with_previous")
LLAMA_2 = norm.Sequence([norm.Prepend(SPACE), norm.Replace(" ", SPACE)]), None
MISTRAL = None, pre.Metaspace(split=False)
BARE = norm.Replace(" ", SPACE), None


def split(backend: Tokenizer) -> Tokenizer:
    """Returns a copy that is split into words."""
    copy = PreTrainedTokenizerFast(tokenizer_object=backend)
    split_into_words(copy)
    return copy.backend_tokenizer


def n_words(backend: Tokenizer, text: str) -> int:
    normalized = text if backend.normalizer is None else backend.normalizer.normalize_str(text)
    return len(backend.pre_tokenizer.pre_tokenize_str(normalized)) if backend.pre_tokenizer else 1


@pytest.mark.parametrize("options", [{}, {"byte_fallback": False}, {"byte_fallback": False, "fuse_unk": False}])
@pytest.mark.parametrize("parts", [GEMMA, LLAMA_2, MISTRAL, BARE])
def test_texts_in_words_have_the_same_tokens(parts: tuple[Any, Any], options: dict[str, Any]) -> None:
    backend = bpe_of_whole_texts(*parts, **options)
    words = split(backend)
    assert n_words(backend, "three small words") == 1
    assert n_words(words, "three small words") == 3
    texts = [*TEXTS, *PROSE, *hard_texts(300, seed=0, pieces=30), *(SPACE * n + "the" + SPACE * n for n in range(9))]
    for one, other in zip(backend.encode_batch(texts), words.encode_batch(texts), strict=True):
        assert one.tokens == other.tokens
        assert one.ids == other.ids


@pytest.mark.parametrize(
    ("parts", "options"),
    [
        (GEMMA, {"words": ".+"}),  # tokens go across the beginnings of words
        (GEMMA, {"ignore_merges": True}),
        (GEMMA, {"dropout": 0.1}),
        ((None, pre.Metaspace()), {}),
    ],
)
def test_other_tokenizers_stay_as_they_are(parts: tuple[Any, Any], options: dict[str, Any]) -> None:
    backend = bpe_of_whole_texts(*parts, **options)
    text = "The chlorophyll in the leaves"
    assert n_words(split(backend), text) == n_words(backend, text)


@pytest.mark.parametrize("byte_fallback", [False, True])
def test_a_vocabulary_that_leaves_characters_out_stays_as_it_is(byte_fallback: bool) -> None:
    """Their neighbours join, across the beginning of a word."""
    vocabulary = {SPACE: 0, "a": 1, "b": 2, SPACE * 2: 3, f"{SPACE}b": 4}
    backend = Tokenizer(models.BPE(vocabulary, [(SPACE, SPACE), (SPACE, "b")], byte_fallback=byte_fallback))
    backend.normalizer = BARE[0]
    assert split(backend).encode("a \u4e2d b").ids == backend.encode("a \u4e2d b").ids == [1, 3, 2]


def test_a_vocabulary_without_the_space_stays_as_it_is() -> None:
    backend = Tokenizer(models.BPE({"a": 0, "b": 1, "?": 2}, [], unk_token="?", fuse_unk=True))
    backend.normalizer = BARE[0]
    assert split(backend).encode("a  b").ids == [0, 2, 1]
