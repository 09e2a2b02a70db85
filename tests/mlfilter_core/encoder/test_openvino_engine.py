import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn.functional import normalize
from transformers import BertModel, Qwen3Config, Qwen3Model

from mlfilter_core.config.embedding import EmbeddingPipelineParameters
from mlfilter_core.embedding.embed_file import made_by
from mlfilter_core.embedding.work import embed_work
from mlfilter_core.embedding_store.reader import EmbeddingFile
from mlfilter_core.encoder import optimizations
from mlfilter_core.encoder.encoder import Encoder, TokenizedTexts
from mlfilter_core.encoder.loading import load_encoder
from mlfilter_core.encoder.model_files import ModelFiles
from mlfilter_core.encoder.model_properties import POOLING_MODES
from mlfilter_core.encoder.openvino_engine import PIECE_TOKENS, OpenVinoEngine
from mlfilter_core.encoder.settings import EncoderSettings
from mlfilter_core.files.task_files import TaskFile
from tests.conftest import TINY_DIM, tiny_tokenizer
from tests.mlfilter_core.encoder.conftest import TEXTS, TOLERANCE, encode, tiny


@pytest.fixture(scope="session")
def by_openvino(minilm: ModelFiles) -> Encoder:
    return load_encoder(minilm, EncoderSettings(), "cpu", has_openvino=True)


def of_lengths(lengths: Iterable[int], n_tokens: int = 20_000) -> TokenizedTexts:
    """Texts of random tokens."""
    random = np.random.default_rng(0)
    ids = [random.integers(n_tokens // 20, n_tokens, length).astype(np.int32) for length in lengths]
    ones = np.ones(len(ids), np.int32)
    return TokenizedTexts(ids, np.array([len(each) for each in ids], np.int32), ones != 1, ones)


def test_the_embeddings_are_those_of_pytorch(by_openvino: Encoder, minilm_encoder: Encoder) -> None:
    assert by_openvino.provenance()["attention"] == "openvino"
    assert "float32 on cpu, by OpenVINO" in str(by_openvino)
    np.testing.assert_allclose(encode(by_openvino, TEXTS), encode(minilm_encoder, TEXTS), atol=TOLERANCE)


def test_an_embedding_does_not_depend_on_the_texts_before_it(by_openvino: Encoder, minilm_encoder: Encoder) -> None:
    """OpenVINO compiles code for the shapes that it meets."""
    random = np.random.default_rng(1)
    for _ in range(12):
        texts = of_lengths(np.exp(random.uniform(0, np.log(by_openvino.max_length or 0), 9)).astype(int))
        expected = minilm_encoder.encode(texts).embeddings()
        np.testing.assert_allclose(by_openvino.encode(texts).embeddings(), expected, atol=TOLERANCE)


def test_more_texts_than_are_computed_at_a_time_keep_their_order(by_openvino: Encoder, minilm_encoder: Encoder) -> None:
    texts = of_lengths([PIECE_TOKENS // 2 - 1] * 30 + [3, 1])
    batches: list[tuple[int, int]] = []
    encoded = by_openvino.encode(texts, on_batch=lambda *sizes: batches.append(sizes))
    assert batches == [(32, int(texts.n_tokens.sum()))]
    np.testing.assert_allclose(encoded.embeddings(), minilm_encoder.encode(texts).embeddings(), atol=TOLERANCE)


def test_in_bfloat16_it_is_as_near_to_float32_as_pytorch(minilm: ModelFiles, minilm_encoder: Encoder) -> None:
    encoder = load_encoder(minilm, EncoderSettings(model_dtype="bfloat16"), "cpu", has_openvino=True)
    made = encoder.provenance()
    # A CPU without instructions for bfloat16 leaves the model to PyTorch.
    assert (made["attention"], made["compute_dtype"]) in (("openvino", "bfloat16"), ("unpadded", "bfloat16"))
    cosines = (encode(encoder, TEXTS) * encode(minilm_encoder, TEXTS)).sum(axis=1)
    assert cosines.min() > 0.9995


def test_a_model_that_it_cannot_convert_is_computed_by_pytorch_and_the_log_says_so(
    tiny_model: Path, tiny_encoder: Encoder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    root = logging.getLogger()
    logged = root.level, root.filters[:], root.handlers[:]
    own = BertModel.forward

    def unknown(model: BertModel, **features: Any) -> Any:
        made = own(model, **features)
        made.last_hidden_state = made.last_hidden_state + 0 * made.last_hidden_state.diff(dim=2).sum()
        return made

    monkeypatch.setattr(BertModel, "forward", unknown)
    assert tiny(tiny_model, has_openvino=True).forward_pass.engine is None
    assert "PyTorch computes this model, and not OpenVINO (OpConversionFailure: " in caplog.text
    assert (root.level, root.filters, root.handlers) == logged  # a failed conversion would leave errors alone


def test_a_model_that_needs_a_mask_gets_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    tokenizer = tiny_tokenizer()
    config = Qwen3Config(
        **{"vocab_size": len(tokenizer), "hidden_size": TINY_DIM, "num_hidden_layers": 2, "intermediate_size": 64},
        **{"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 64},
    )
    Qwen3Model(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    expected = encode(tiny(tmp_path), TEXTS)
    encoder = tiny(tmp_path, has_openvino=True)
    assert "by OpenVINO" in caplog.text
    np.testing.assert_allclose(encode(encoder, TEXTS), expected, atol=TOLERANCE)


@pytest.mark.parametrize("pooling", [*POOLING_MODES])
def test_the_pooling_is_that_of_pytorch(tiny_model: Path, pooling: str) -> None:
    encoder = tiny(tiny_model, has_openvino=True, pooling=pooling)
    assert encoder.provenance()["attention"] == "openvino"
    np.testing.assert_allclose(encode(encoder, TEXTS), encode(tiny(tiny_model, pooling=pooling), TEXTS), atol=TOLERANCE)


@pytest.mark.parametrize("factor", [1 + 1e-3, float("nan")])
def test_a_model_whose_embeddings_differ_is_computed_by_pytorch(
    tiny_model: Path,
    tiny_encoder: Encoder,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    factor: float,
) -> None:
    caplog.set_level(logging.INFO)
    own = OpenVinoEngine.run

    def wrong(engine: OpenVinoEngine, pieces: Any) -> Iterator[torch.Tensor]:
        return (embeddings * factor for embeddings in own(engine, pieces))

    monkeypatch.setattr(OpenVinoEngine, "run", wrong)
    encoder = tiny(tiny_model, has_openvino=True)
    assert encoder.provenance()["attention"] == "unpadded"
    assert "PyTorch computes this model, and not OpenVINO (embeddings differ by " in caplog.text
    np.testing.assert_allclose(encode(encoder, TEXTS), encode(tiny_encoder, TEXTS), atol=TOLERANCE)


def test_texts_longer_than_those_of_the_trial_are_computed_by_pytorch(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(optimizations, "TRIAL_TOKENS", 32)
    assert tiny(tiny_model, has_openvino=True).provenance()["attention"] == "unpadded"
    assert "OpenVINO would for texts of at most 32 tokens" in caplog.text
    assert tiny(tiny_model, has_openvino=True, max_length=32).provenance()["attention"] == "openvino"


def test_without_the_package_pytorch_computes(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(optimizations, "is_installed", lambda: False)
    assert tiny(tiny_model, has_openvino=True).provenance()["attention"] == "unpadded"
    assert "pip install 'mlfilter[openvino]'" in caplog.text


def test_a_later_text_that_gets_a_wrong_embedding_is_found(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As from code that was compiled for the shape of an earlier one."""
    own, n_runs = OpenVinoEngine.run, count()

    def wrong_later(engine: OpenVinoEngine, pieces: Any) -> Iterator[torch.Tensor]:
        factor = 1.0 if next(n_runs) < 2 else 1.01
        return (embeddings * factor for embeddings in own(engine, pieces))

    monkeypatch.setattr(OpenVinoEngine, "run", wrong_later)
    assert tiny(tiny_model, has_openvino=True, pooling="cls").provenance()["attention"] == "unpadded"


def test_small_batches_of_a_job_leave_no_core_idle(tiny_model: Path) -> None:
    encoder = tiny(tiny_model, has_openvino=True)  # asks for 512 tokens
    sizes: list[int] = []
    encoder.encode(of_lengths([60] * 40, n_tokens=200), 8, 512, on_batch=lambda n_texts, _: sizes.append(n_texts))
    assert sizes == [40]


def test_parts_of_a_file_in_float32_may_be_of_either(tiny_model: Path, tiny_encoder: Encoder) -> None:
    by_pytorch, by_openvino = tiny_encoder.provenance(), tiny(tiny_model, has_openvino=True).provenance()
    assert by_pytorch["attention"] != by_openvino["attention"]
    assert made_by(by_pytorch) == made_by(by_openvino)
    in_bfloat16 = {"compute_dtype": "bfloat16"}
    assert made_by({**by_pytorch, **in_bfloat16}) != made_by({**by_openvino, **in_bfloat16})


def test_after_an_error_the_next_texts_get_their_own_embeddings(by_openvino: Encoder, minilm_encoder: Encoder) -> None:
    engine = by_openvino.forward_pass.engine
    assert engine is not None
    texts = of_lengths([4, 256])
    short, long = (ids[None].astype(np.int64) for ids in texts.input_ids)

    def broken() -> Iterator[NDArray[np.int64]]:
        yield long
        yield long
        raise MemoryError

    with pytest.raises(MemoryError):
        list(engine.run(broken()))
    made = [each.clone() for each in engine.run([short, long])]
    expected = minilm_encoder.encode(texts).embeddings()
    np.testing.assert_allclose(normalize(torch.cat(made)), expected, atol=TOLERANCE)


def test_the_weights_are_not_kept_twice(by_openvino: Encoder) -> None:
    assert all(parameter.is_meta for parameter in by_openvino.forward_pass.model.parameters())


def test_no_thread_is_bound_to_a_core(by_openvino: Encoder) -> None:
    """All processes would otherwise be bound to the same ones."""
    encode(by_openvino, TEXTS)
    threads = {int(path.name) for path in Path("/proc/self/task").iterdir()}
    assert len(threads) > threading.active_count(), "OpenVINO has no threads, so the test proves nothing"
    assert {frozenset(os.sched_getaffinity(thread)) for thread in threads} == {frozenset(os.sched_getaffinity(0))}


def test_nothing_is_reported_to_its_makers(tiny_model: Path) -> None:
    code = """
import sys
from pathlib import Path
from tests.mlfilter_core.encoder.conftest import tiny
assert tiny(Path(sys.argv[1]), has_openvino=True).provenance()["attention"] == "openvino"
print([name for name in sys.modules if name.startswith("openvino_telemetry") and sys.modules[name]])
"""
    line = [sys.executable, "-c", code, str(tiny_model)]
    assert subprocess.run(line, check=True, capture_output=True, text=True).stdout == "[]\n"


@pytest.mark.parametrize(
    ("openvino", "is_small", "attention"),
    [(True, False, "openvino"), (True, True, "unpadded"), (False, False, "unpadded")],
)
def test_a_job_says_what_computed_its_embeddings(
    tiny_model: Path, tmp_path: Path, openvino: bool, is_small: bool, attention: str
) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    params = EmbeddingPipelineParameters(
        input_dir=tmp_path / "corpus", output_dir=tmp_path / "out", embedding_model=str(tiny_model), openvino=openvino
    )
    work = replace(embed_work(params), is_small=is_small)
    work.run(TaskFile("a.jsonl", "a", params.input_dir))
    with EmbeddingFile(params.embedding_output_dir / "a.h5", "train") as file:
        assert file.provenance is not None
        assert file.provenance.encoder["attention"] == attention
