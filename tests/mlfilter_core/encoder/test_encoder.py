import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mlfilter_core.encoder.encoder import Encoder
from mlfilter_core.encoder.loading import load_encoder
from mlfilter_core.encoder.model_files import ModelFiles
from mlfilter_core.encoder.settings import EncoderSettings
from tests.conftest import TINY_DIM, limit_memory, tiny_bert, tiny_tokenizer
from tests.mlfilter_core.encoder.conftest import TEXTS, TOLERANCE, encode, reference, tiny


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


def batches(encoder: Encoder) -> list[int]:
    """Collects the tokens of each forward pass, padding included."""
    sizes: list[int] = []
    embeddings = encoder.forward_pass.model.get_submodule("embeddings")
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


LIMITED = """
import resource
import sys
from pathlib import Path
from mlfilter_core.encoder.loading import load_encoder
from mlfilter_core.encoder.settings import EncoderSettings
from mlfilter_core.encoder.model_files import resolve_model

encoder = load_encoder(resolve_model(sys.argv[1]), EncoderSettings(), "cpu", 1 << 20)
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
def test_a_process_with_too_little_memory_goes_on_with_smaller_batches(tmp_path: Path) -> None:
    """The whole batch needs 250 MB for one layer, as MiniLM's; the process may use 128 MB more than now."""
    tiny_tokenizer(model_max_length=512).save_pretrained(tmp_path)
    tiny_bert(0, max_position_embeddings=512, n_layers=1, intermediate_size=1536).save_pretrained(tmp_path)
    line = [sys.executable, "-c", LIMITED, str(tmp_path)]
    output = subprocess.run(line, check=True, capture_output=True, text=True).stdout
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
    assert encoder.forward_pass.is_unpadded == is_unpadded
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
