from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from transformers import AutoTokenizer

from mlfilter_core.encoder.chunks import ChunkDivision
from mlfilter_core.encoder.encoder import Encoder
from mlfilter_core.encoder.model_files import ModelFiles
from mlfilter_core.encoder.settings import Chunks
from mlfilter_core.errors import EncoderError
from tests.conftest import TINY_MAX_LENGTH
from tests.mlfilter_core.encoder.conftest import encode, reference, tiny

TEXTS = ["", "one", "x " * 6, "x " * 7, " ".join(f"word{i}" for i in range(60)), "größer ist besser, " * 40]


def hugging_face_chunks(files: ModelFiles | Path, texts: list[str], tokens: int, overlap: int) -> list[list[list[int]]]:
    """Returns the chunks that a tokenizer of transformers makes, which calls the overlap a stride."""
    tokenizer = AutoTokenizer.from_pretrained(files if isinstance(files, Path) else files.folder)
    settings = {"truncation": True, "max_length": tokens, "stride": overlap, "return_overflowing_tokens": True}
    return [tokenizer(text, **settings)["input_ids"] for text in texts]


def chunks_of(encoder: Encoder, texts: list[str]) -> list[list[list[int]]]:
    tokens = encoder.tokenize(texts)
    ids = iter(tokens.input_ids)
    return [[next(ids).tolist() for _ in range(n)] for n in tokens.n_chunks]


@pytest.mark.parametrize(("tokens", "overlap"), [(8, 0), (8, 1), (8, 5), (3, 0), (TINY_MAX_LENGTH, 16)])
def test_chunks_are_those_of_hugging_faces_tokenizers(tiny_model: Path, tokens: int, overlap: int) -> None:
    encoder = tiny(tiny_model, max_length=tokens, chunks=Chunks(overlap, most=10_000))
    assert chunks_of(encoder, TEXTS) == hugging_face_chunks(tiny_model, TEXTS, tokens, overlap)


def test_every_token_of_a_text_is_counted_once_and_the_text_is_not_cut(tiny_model: Path) -> None:
    encoder = tiny(tiny_model, max_length=8, chunks=Chunks(overlap=3, most=10_000))
    whole = AutoTokenizer.from_pretrained(tiny_model)(TEXTS)["input_ids"]
    tokens = encoder.tokenize(TEXTS)
    assert tokens.n_tokens.tolist() == list(map(len, whole))
    assert not tokens.is_cut.any()


def test_no_text_has_more_chunks_than_allowed_and_a_longer_one_is_cut(tiny_model: Path) -> None:
    # A chunk has room for 6 tokens, and 2 of them are those of the one before: 6, 10, 14 tokens of a text.
    encoder = tiny(tiny_model, max_length=8, chunks=Chunks(overlap=2, most=3))
    texts = ["x " * n for n in (6, 7, 10, 11, 14, 15, 5000)]
    tokens = encoder.tokenize(texts)
    assert tokens.n_chunks.tolist() == [1, 2, 2, 3, 3, 3, 3]
    assert tokens.is_cut.tolist() == [False] * 5 + [True] * 2
    assert tokens.n_tokens.tolist() == [8, 9, 12, 13, 16, 16, 16]


def test_the_prompt_stands_before_each_chunk(tiny_model: Path) -> None:
    encoder = tiny(tiny_model, max_length=10, chunks=Chunks(most=100), prompt="be good: ")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    prompt = tokenizer("be good: ", add_special_tokens=False)["input_ids"]
    (chunks,) = chunks_of(encoder, ["x " * 13])
    assert [chunk[1 : 1 + len(prompt)] for chunk in chunks] == [prompt] * len(chunks)
    assert [chunk[1 + len(prompt) :] for chunk in chunks] == [
        tokenizer("x " * n, add_special_tokens=False)["input_ids"] + [tokenizer.sep_token_id]
        for n in [8 - len(prompt)] * (len(chunks) - 1) + [13 - (8 - len(prompt)) * (len(chunks) - 1)]
    ]


def test_a_prompt_that_is_joined_with_the_text_leaves_its_whole_tokens_before_each_chunk(tiny_model: Path) -> None:
    # "ba" ends the prompt and begins a word of the text: its token is another one.
    encoder = tiny(tiny_model, max_length=8, chunks=Chunks(most=100), prompt="be. ba")
    (chunks,) = chunks_of(encoder, ["na x x x x x x x x"])
    start = AutoTokenizer.from_pretrained(tiny_model)("be.", add_special_tokens=False)["input_ids"]
    assert {tuple(chunk[1 : 1 + len(start)]) for chunk in chunks} == {tuple(start)}


@pytest.mark.parametrize("overlap", [0, 1])
def test_a_text_that_is_joined_with_the_prompt_as_no_tried_one_is_does_not_stand_before_its_other_chunks(
    overlap: int,
) -> None:
    # The ids of "query:" are 1, 2, 3, those of a text are its characters, and "://" is one token.
    def tokenize(texts: Sequence[str]) -> list[NDArray[np.int32]]:
        joined = [text.replace("query:", "\1\2\3").replace("\3//", "\4") for text in texts]
        return [np.array([*map(ord, text), 9], np.int32) for text in joined]

    division = ChunkDivision(tokenize, 6, Chunks(overlap, most=4), "query:")
    (ids,) = tokenize(["query://abcdefgh"])
    chunks = [bytes(chunk.tolist()) for chunk in division.divide(ids)]
    assert (
        chunks
        == [
            [b"\1\2\4ab\t", b"\1\2cde\t", b"\1\2fgh\t"],
            [b"\1\2\4ab\t", b"\1\2bcd\t", b"\1\2def\t", b"\1\2fgh\t"],
        ][overlap]
    )


def test_an_end_token_ends_each_chunk(tiny_model: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.eos_token = "[MASK]"
    tokenizer.save_pretrained(tmp_path)
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((tiny_model / name).read_bytes())
    encoder = tiny(tmp_path, max_length=8, chunks=Chunks(most=100), add_eos=True)
    (chunks,) = chunks_of(encoder, ["x " * 20])
    assert len(chunks) == 4
    assert {chunk[-1] for chunk in chunks} == {tokenizer.eos_token_id}


def test_the_first_chunk_has_the_embedding_of_the_truncated_text(tiny_model: Path) -> None:
    encoder = tiny(tiny_model, max_length=8, chunks=Chunks(overlap=2))
    tokens = encoder.tokenize(TEXTS)
    first = np.cumsum(tokens.n_chunks) - tokens.n_chunks
    np.testing.assert_allclose(encode(encoder, TEXTS)[first], reference(tiny_model, TEXTS, 8), atol=1e-5)


def test_texts_are_selected_with_all_their_chunks(tiny_model: Path) -> None:
    encoder = tiny(tiny_model, max_length=8, chunks=Chunks(overlap=2, most=5))
    rows = np.array([4, 1, 5])
    selected, again = encoder.tokenize(TEXTS).select(rows), encoder.tokenize([TEXTS[row] for row in rows])
    for name in ("n_tokens", "is_cut", "n_chunks"):
        assert getattr(selected, name).tolist() == getattr(again, name).tolist()
    assert list(map(list, selected.input_ids)) == list(map(list, again.input_ids))


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"max_length": 8, "chunks": Chunks(overlap=6)}, "of 8 tokens, 2 are special tokens .* raise tokens to 9"),
        (
            {"max_length": 8, "chunks": Chunks(overlap=3), "prompt": "be good: "},
            r"of 8 tokens, 7 are special tokens and prompt, and 3 overlap; raise tokens to 11",
        ),
        ({"max_length": TINY_MAX_LENGTH + 1, "chunks": Chunks()}, "the model has positions for"),
    ],
)
def test_chunks_that_hold_no_new_token_are_refused(tiny_model: Path, settings: dict[str, object], problem: str) -> None:
    with pytest.raises(EncoderError, match=problem):
        tiny(tiny_model, **settings)
