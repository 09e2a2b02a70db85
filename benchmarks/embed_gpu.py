"""Speed of the encoder on a GPU, compared with sentence-transformers.

Three encoders with random weights, in the sizes of MiniLM, XLM-RoBERTa base and ModernBERT base. Throughput does not
depend on the weights. Nothing is downloaded: the tokenizer is made here too, and the documents are random words of its
vocabulary, one token each. The speed of the tokenizer is therefore measured separately, and is that of easy text.
Needs neither Prefect nor Dask.

Example:
    python benchmarks/embed_gpu.py --threads 16 --json benchmarks/results/embed_gpu.json
"""

import argparse
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import MATRIX_PRODUCTS, alternate, matrix_product, parser, publish, synchronize
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoModel,
    BertConfig,
    ModernBertConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    XLMRobertaConfig,
)

from mlfilter_core.embedding.stages import Stages
from mlfilter_core.encoder.encoder import Encoder, TokenizedTexts
from mlfilter_core.encoder.loading import load_encoder
from mlfilter_core.encoder.model_files import resolve_model
from mlfilter_core.encoder.settings import EncoderSettings

N_WORDS = 30_000
MEAN_TOKENS = 690  # mean of web documents in the JQL paper, https://arxiv.org/abs/2505.22232
SPREAD = 0.9  # standard deviation of the logarithm of the length
WINDOW_DOCUMENTS = 4096
THEIR_BATCH_SIZES = (32, 64, 128, 256, 512)
MATRIX_SIDE = 8192
MAX_LENGTHS = {"minilm": 512, "xlm_roberta_base": 512, "modernbert_base": 8192}


def main() -> None:
    """Runs the benchmark, or reports that there is no GPU."""
    options = parser(__doc__)
    options.add_argument("--device", default="cuda", help="cpu shows that the script runs, and no more")
    options.add_argument("--documents", type=int, default=8192, help="documents for each model (default: 8192)")
    options.add_argument("--models", nargs="+", choices=MAX_LENGTHS, default=list(MAX_LENGTHS))
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.device.startswith("cuda") and not torch.cuda.is_available():
        print("There is no CUDA GPU on this machine: nothing is measured.")
        return
    texts = random_texts(arguments.documents)
    figures: dict[str, float] = {}
    mean_tokens = np.mean([text.count(" ") + 3 for text in texts])
    about = {
        "documents": f"{len(texts)} of {mean_tokens:.0f} tokens on average, before "
        "they are cut; random words, random weights: throughput does not depend on either",
        "threads": str(arguments.threads),
    }
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.models:
            measured, facts = speed(name, texts, Path(folder) / name, arguments)
            figures |= {f"{name}_{key}": value for key, value in measured.items()}
            about |= {f"{name} {key}": value for key, value in facts.items()}
    publish(figures, about, arguments.json)


def speed(
    name: str, texts: list[str], folder: Path, arguments: argparse.Namespace
) -> tuple[dict[str, float], dict[str, str]]:
    """Returns the figures of one model, and how they were measured."""
    device, max_length = arguments.device, MAX_LENGTHS[name]
    config = save_model(name, folder)
    settings = EncoderSettings(max_length=max_length, model_dtype="bfloat16")
    encoder = load_encoder(resolve_model(str(folder)), settings, device)
    compiled = load_encoder(resolve_model(str(folder)), settings, device, torch_compile=True)
    tokenized = encoder.tokenize(texts)
    runs: dict[str, Callable[[], Any]] = {
        "ours": lambda: embed(texts, encoder),
        "ours_tokenized": lambda: encoder.encode(tokenized).embeddings(),
        "tokenizer": lambda: encoder.tokenize(texts),
        "matmul": matrix_product(lambda matrix: matrix @ matrix, torch.bfloat16, device, side(device)),
    }
    if compiled.forward_pass.is_compiled:
        runs["ours_compiled"] = lambda: embed(texts, compiled)
    facts = {"encoder": str(encoder), "compiled encoder": str(compiled)}
    expected = embed(texts[:64], encoder)
    for path, attention in (("padded", "sdpa"), ("unpadded", "flash_attention_2")):
        try:
            peer = sentence_transformers(folder, device, max_length, attention)
            theirs = peer.encode(texts[:64], show_progress_bar=False)
        except Exception as error:  # flash-attn is not installed, or not for this model or device
            facts[f"sentence_transformers {path}"] = f"not to be had here: {str(error).splitlines()[0][:120]}"
            continue
        cosines = (theirs * expected).sum(axis=1)
        if cosines.min() < 0.99:
            raise RuntimeError(f"{name}: the embeddings are not those of sentence-transformers, cosine {cosines.min()}")
        size = best_batch_size(peer, texts[:1024], device)
        facts[f"sentence_transformers {path}"] = f"batches of {size} documents, its fastest of {THEIR_BATCH_SIZES}"
        runs[path] = lambda peer=peer, size=size: peer.encode(texts, batch_size=size, show_progress_bar=False)
    seconds = alternate(arguments.rounds, runs)
    n_tokens = int(tokenized.n_tokens.sum())
    matmul_rate = 2 * side(device) ** 3 * MATRIX_PRODUCTS / seconds["matmul"]
    figures = {
        "tokens_per_s": n_tokens / seconds["ours"],
        "documents_per_s": len(texts) / seconds["ours"],
        "share_of_matmul": forward_flops(config, tokenized.n_tokens) / seconds["ours"] / matmul_rate,
        "tokens_per_s_without_tokenizing": n_tokens / seconds["ours_tokenized"],
        "tokenizer_tokens_per_s": n_tokens / seconds["tokenizer"],
        "matmul_tflop_per_s": matmul_rate / 1e12,
    }
    if compiled.forward_pass.is_compiled:
        figures["compiled_tokens_per_s"] = n_tokens / seconds["ours_compiled"]
    for path in ("padded", "unpadded"):
        if path in seconds:
            figures[f"vs_sentence_transformers_{path}"] = seconds[path] / seconds["ours"]
    return figures, facts


def embed(texts: list[str], encoder: Encoder) -> NDArray[np.float32]:
    """Encodes a window of documents while the next one is tokenised, as the embedding pipeline does."""

    def tokenize() -> Iterator[TokenizedTexts]:
        for start in range(0, len(texts), WINDOW_DOCUMENTS):
            yield encoder.tokenize(texts[start : start + WINDOW_DOCUMENTS])

    with Stages("tokenizing", "encoding") as stages:
        encoded = [encoder.encode(tokenized) for tokenized in stages.run(tokenize())]
        return np.concatenate([window.embeddings() for window in encoded])


def save_model(name: str, folder: Path) -> PretrainedConfig:
    """Writes a model with random weights, as sentence-transformers does, and returns its configuration."""
    small = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
    config: PretrainedConfig = {
        "minilm": BertConfig(**small),
        "xlm_roberta_base": XLMRobertaConfig(vocab_size=250_002, max_position_embeddings=514, type_vocab_size=1),
        "modernbert_base": ModernBertConfig(),
    }[name]
    torch.manual_seed(0)
    AutoModel.from_config(config).save_pretrained(folder / "plain")
    names = ["input_ids", "token_type_ids", "attention_mask"] if name == "minilm" else ["input_ids", "attention_mask"]
    tokenizer(config.pad_token_id, names).save_pretrained(folder / "plain")
    modules = [Transformer(str(folder / "plain")), Pooling(config.hidden_size, "mean"), Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save(str(folder), create_model_card=False)
    return config


def tokenizer(pad_token_id: int, names: list[str]) -> PreTrainedTokenizerFast:
    """Returns a WordPiece tokenizer of whole words, `w<number>`, with the pad token where the model has it."""
    tokens = [f"w{i}" for i in range(N_WORDS)]
    vocabulary = {token: i for i, token in enumerate(["[UNK]", "[CLS]", "[SEP]", *tokens])}
    if pad_token_id < len(vocabulary):  # replaces a word, or a special token, which moves to the end
        displaced = next(token for token, i in vocabulary.items() if i == pad_token_id)
        vocabulary[displaced] = len(vocabulary)
    vocabulary["[PAD]"] = pad_token_id
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = [(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
    backend.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=special)
    roles = {f"{role}_token": f"[{role.upper()}]" for role in ("pad", "unk", "cls", "sep")}
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_input_names=names, **roles)


def random_texts(n_documents: int) -> list[str]:
    """Returns texts whose lengths are spread as those of web pages: log-normal, with a mean of `MEAN_TOKENS`."""
    chance = random.Random(0)
    mean_of_log = np.log(MEAN_TOKENS) - SPREAD**2 / 2
    lengths = [max(1, round(chance.lognormvariate(mean_of_log, SPREAD)) - 2) for _ in range(n_documents)]
    return [" ".join(f"w{chance.randrange(N_WORDS)}" for _ in range(length)) for length in lengths]


def sentence_transformers(folder: Path, device: str, max_length: int, attention: str) -> SentenceTransformer:
    """Returns the same model in bfloat16 with the requested attention."""
    arguments = {"dtype": torch.bfloat16, "attn_implementation": attention}
    model = SentenceTransformer(str(folder), device=device, model_kwargs=arguments)
    model.max_seq_length = max_length
    return model


def best_batch_size(model: SentenceTransformer, texts: list[str], device: str) -> int:
    """Returns the batch size with which sentence-transformers is fastest; it sorts the texts by length itself."""
    seconds: dict[int, float] = {}
    for size in THEIR_BATCH_SIZES:
        try:
            for _ in range(2):  # the first run warms up
                started = time.perf_counter()
                model.encode(texts, batch_size=size, show_progress_bar=False)
                synchronize(device)
                seconds[size] = time.perf_counter() - started
        except torch.OutOfMemoryError:
            seconds.pop(size, None)
            torch.cuda.empty_cache()
            break
    return min(seconds, key=lambda size: seconds[size])


def side(device: str) -> int:
    """Returns the size of the matrices for measuring the rate of a device."""
    return MATRIX_SIDE if device.startswith("cuda") else 1024


def forward_flops(config: PretrainedConfig, n_tokens: NDArray[np.int32]) -> float:
    """Returns the floating-point operations of the matrix products for the tokens, without padding."""
    hidden, intermediate = config.hidden_size, config.intermediate_size
    n_layers = config.num_hidden_layers
    lengths = n_tokens.astype(np.float64)
    if isinstance(config, ModernBertConfig):  # its gate is a third matrix; most layers see `local_attention` tokens
        n_global = sum(kind == "full_attention" for kind in config.layer_types)
        seen = n_global * lengths + (n_layers - n_global) * np.minimum(lengths, config.local_attention)
        matrices = 4 * hidden**2 + 3 * hidden * intermediate
    else:
        seen = n_layers * lengths
        matrices = 4 * hidden**2 + 2 * hidden * intermediate
    return float((2 * matrices * n_layers * lengths + 4 * hidden * seen * lengths).sum())


if __name__ == "__main__":
    main()
