import functools
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import CNN, Pooling
from transformers import AttentionInterface, Qwen3Config, Qwen3Model

from mlfilter_core.encoder.attention import UNPADDED, unpadded_attention
from mlfilter_core.encoder.encoder import Encoder, TokenizedTexts
from mlfilter_core.encoder.forward_pass import ForwardPass
from mlfilter_core.encoder.loading import load_encoder
from mlfilter_core.encoder.model_files import resolve_model
from mlfilter_core.encoder.model_properties import read_properties
from mlfilter_core.encoder.optimizations import optimize
from mlfilter_core.encoder.settings import EncoderSettings
from tests.conftest import TINY_DIM, tiny_tokenizer
from tests.mlfilter_core.encoder.conftest import TEXTS, TOLERANCE, Folder, encode, reference, tiny


def test_a_model_whose_attention_is_more_than_attention_is_given_padded_texts(
    tiny_model: Path, tiny_encoder: Encoder, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    """Attention without an argument that the model needs."""
    expected = encode(tiny_encoder, TEXTS)

    def too_much(*args: Any, **kwargs: Any) -> Any:
        attended, weights = unpadded_attention(*args, **kwargs)
        return attended * 1.1, weights

    request.addfinalizer(lambda: AttentionInterface.register(UNPADDED, unpadded_attention))
    AttentionInterface.register(UNPADDED, too_much)
    encoder = tiny(tiny_model)
    assert not encoder.forward_pass.is_unpadded
    assert encoder.provenance()["attention"] == "sdpa"
    assert re.search(
        r"cannot take texts without padding \(embeddings differ by [\d.]+e-\d+ of their length\)", caplog.text
    )
    np.testing.assert_allclose(encode(encoder, TEXTS), expected, atol=TOLERANCE)


@pytest.mark.parametrize("share", [1e-4, 1e-2])
def test_a_small_difference_is_seen_as_well(
    tiny_model: Path, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture, share: float
) -> None:
    def nearly(*args: Any, **kwargs: Any) -> Any:
        attended, weights = unpadded_attention(*args, **kwargs)
        return attended * (1 + share), weights

    request.addfinalizer(lambda: AttentionInterface.register(UNPADDED, unpadded_attention))
    AttentionInterface.register(UNPADDED, nearly)
    assert not tiny(tiny_model).forward_pass.is_unpadded


def test_a_model_that_mixes_neighbours_gets_texts_of_one_length(
    save_modules: Folder, caplog: pytest.LogCaptureFixture
) -> None:
    """A convolution over token embeddings: at the end of a text it sees padding, or the next text."""
    torch.manual_seed(0)
    folder = save_modules(CNN(TINY_DIM, out_channels=16, kernel_sizes=[3, 5]), Pooling(32))
    encoder = tiny(folder)
    assert not encoder.forward_pass.is_unpadded
    assert encoder.forward_pass.depends_on_padding
    assert "padding changes this model's embeddings" in caplog.text
    assert str(encoder).endswith("texts of one length in a batch")
    texts = [*TEXTS, *TEXTS[::-1]]
    np.testing.assert_allclose(encode(encoder, texts), reference(folder, texts, batch_size=1), atol=TOLERANCE)


def test_a_deep_model_takes_texts_without_padding(tmp_path: Path) -> None:
    """Rounding adds up over layers, also between two ways of its own."""
    config = Qwen3Config(
        vocab_size=300, hidden_size=64, num_hidden_layers=36, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
        intermediate_size=128, max_position_embeddings=512, pad_token_id=0, initializer_range=0.1,
    )  # fmt: skip
    torch.manual_seed(0)
    Qwen3Model(config).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    for dtype in ("float32", "bfloat16"):
        assert tiny(tmp_path, pooling="last_token", model_dtype=dtype).forward_pass.is_unpadded, dtype


def test_a_model_whose_own_module_gives_one_embedding_for_a_row_of_texts_is_given_padded_texts(
    tiny_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class FirstOfRow(torch.nn.Module):
        """As if it took the row for a single text."""

        def forward(self, features: dict[str, Any]) -> dict[str, Any]:
            is_one_row = len(features["input_ids"]) == 1
            return {**features, "sentence_embedding": features["sentence_embedding"][: 1 if is_one_row else None]}

    model, settings = SentenceTransformer(str(tiny_model), device="cpu").eval(), EncoderSettings()
    model.append(FirstOfRow())
    forward_pass = ForwardPass(model, read_properties(model, settings), torch.device("cpu"), pad_to_max_length=False)
    optimize(forward_pass, pad_to_max_length=False, torch_compile=False)
    assert not forward_pass.is_unpadded
    assert "cannot take texts without padding (RuntimeError: The size of tensor a (2) must match" in caplog.text
    assert len(forward_pass.run([np.array([7, 8], np.int32)] * 3)) == 3


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
    assert encoder.forward_pass.is_compiled
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
    assert not encoder.forward_pass.is_compiled
    assert re.search(r"torch_compile: this model runs uncompiled \(BackendCompilerFailed: .*\bfail\b", caplog.text)
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
    assert encoder.forward_pass.is_compiled
    one_token = TokenizedTexts(
        [np.array([7], np.int32)], np.ones(1, np.int32), np.zeros(1, np.bool_), np.ones(1, np.int32)
    )
    embeddings = encoder.encode(one_token).embeddings()
    assert len(graphs) > 1
    np.testing.assert_allclose(embeddings, tiny_encoder.encode(one_token).embeddings(), atol=TOLERANCE)
