"""Rates of one encoder on a device, ours beside sentence-transformers, reported one by one as they are measured.

Knows nothing about the time of other encoders, nor about files of results.
"""

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from apart import Missing, Result
from measure import MATRIX_PRODUCTS, alternating, matrix_product, synchronize
from numpy.typing import NDArray
from random_encoders import ENCODERS, forward_flops, save_encoder
from sentence_transformers import SentenceTransformer

from mlfilter_core.compute.stages import Stages
from mlfilter_core.encoder.encoder import Encoder, TokenizedTexts
from mlfilter_core.encoder.loading import load_encoder
from mlfilter_core.encoder.model_files import resolve_model
from mlfilter_core.encoder.settings import EncoderSettings

WINDOW_DOCUMENTS = 4096
THEIR_BATCH_SIZES = (32, 64, 128, 256, 512)
CLEARLY_SLOWER = 1.1  # times the seconds of the best batch size: larger ones are not tried
N_COMPARED, LEAST_COSINE = 64, 0.99
ATTENTION = {"padded": "sdpa", "unpadded": "flash_attention_2"}  # of sentence-transformers
MATRIX_SIDE, CPU_MATRIX_SIDE = 8192, 1024
LONGEST_RUN = 1 / 60  # of the time for an encoder: a run of ours over its documents
FEWEST_DOCUMENTS = 64

# Figures in the order in which they appear.
FIGURES = (
    *("load_s", "documents", "lowest_cosine_padded", "lowest_cosine_unpadded"),
    *("tokens_per_s", "documents_per_s", "share_of_matmul"),
    *("vs_sentence_transformers_padded", "vs_sentence_transformers_unpadded"),
    *("tokens_per_s_without_tokenizing", "tokenizer_tokens_per_s", "matmul_tflop_per_s", "rounds"),
)
COMPILED_FIGURES = ("load_s", "documents", "tokens_per_s", "vs_uncompiled", "rounds")


@dataclass(frozen=True)
class Conditions:
    """An encoder, and how it is measured.

    Attributes:
        encoder: One of `ENCODERS`.
        max_length: Most tokens of a document.
        texts: Documents, of which as many are taken as the time allows.
        folder: Folder of the encoder, which is made where it is missing.
        device: Device.
        threads: Threads of PyTorch.
        is_tiny: Whether the encoder is a tiny one.
        rounds: Most rounds.
        until: Time by which all should be measured, on the clock of `time.monotonic`.
    """

    encoder: str
    max_length: int
    texts: list[str]
    folder: Path
    device: str
    threads: int
    is_tiny: bool
    rounds: int
    until: float

    def load(self, torch_compile: bool = False) -> tuple[Encoder, float]:
        """Returns our encoder, and the seconds to load it: its trials of batch sizes and faster paths included."""
        settings = EncoderSettings(max_length=self.max_length, model_dtype="bfloat16")
        started = time.perf_counter()
        encoder = load_encoder(resolve_model(str(self.folder)), settings, self.device, torch_compile=torch_compile)
        return encoder, time.perf_counter() - started

    def texts_for(self, encoder: Encoder) -> list[str]:
        """Returns as many of the first texts as ours embeds in a small part of the time."""
        longest_s = LONGEST_RUN * (self.until - time.monotonic())
        n_documents = FEWEST_DOCUMENTS
        embed(self.texts[:n_documents], encoder)  # warms up
        while n_documents < len(self.texts):
            started = time.perf_counter()
            embed(self.texts[:n_documents], encoder)
            if 2 * (time.perf_counter() - started) > longest_s:
                break
            n_documents *= 2
        return self.texts[:n_documents]


def rates(given: Conditions) -> Iterator[tuple[str, Result]]:
    """Yields `FIGURES`, those of rates again after each round, and facts about how they were measured.

    Raises:
        Exception: Ours does not run.
    """
    torch.set_num_threads(given.threads)
    warnings = Warnings()
    config = save_encoder(ENCODERS[given.encoder], given.folder, given.is_tiny)
    encoder, seconds_to_load = given.load()
    yield "load_s", seconds_to_load
    yield "encoder", str(encoder)
    if warnings.messages:
        yield "warnings", "; ".join(warnings.messages)
    texts = given.texts_for(encoder)
    yield "documents", float(len(texts))
    tokenized = encoder.tokenize(texts)
    side = MATRIX_SIDE if encoder.device.type == "cuda" else CPU_MATRIX_SIDE
    runs: dict[str, Callable[[], Any]] = {
        "ours": lambda: embed(texts, encoder),
        "ours_tokenized": lambda: encoder.encode(tokenized).embeddings(),
        "tokenizer": lambda: encoder.tokenize(texts),
        "matmul": matrix_product(lambda matrix: matrix @ matrix, torch.bfloat16, given.device, side),
    }
    for path in ATTENTION:
        yield from add_peer(path, runs, given, texts, embed(texts[:N_COMPARED], encoder))
    flops, n_tokens = forward_flops(config, tokenized.n_tokens), int(tokenized.n_tokens.sum())
    for n_rounds, seconds in enumerate(alternating(given.rounds, runs, given.until), 1):
        matmul_rate = 2 * side**3 * MATRIX_PRODUCTS / seconds["matmul"]
        yield "tokens_per_s", n_tokens / seconds["ours"]
        yield "documents_per_s", len(texts) / seconds["ours"]
        yield "share_of_matmul", flops / seconds["ours"] / matmul_rate
        for path in ATTENTION.keys() & seconds.keys():
            yield f"vs_sentence_transformers_{path}", seconds[path] / seconds["ours"]
        yield "tokens_per_s_without_tokenizing", n_tokens / seconds["ours_tokenized"]
        yield "tokenizer_tokens_per_s", n_tokens / seconds["tokenizer"]
        yield "matmul_tflop_per_s", matmul_rate / 1e12
        yield "rounds", float(n_rounds)


def add_peer(
    path: str, runs: dict[str, Callable[[], Any]], given: Conditions, texts: list[str], expected: NDArray[np.float32]
) -> Iterator[tuple[str, Result]]:
    """Adds a run of sentence-transformers; yields how it runs, or why it does not.

    Args:
        path: One of `ATTENTION`.
        runs: Runs by name.
        given: The conditions.
        texts: Documents to run on.
        expected: Our embeddings of the first `N_COMPARED`.
    """
    try:
        peer = sentence_transformers(given.folder, given.device, given.max_length, ATTENTION[path])
        theirs = peer.encode(texts[:N_COMPARED], show_progress_bar=False)
        cosine = float((theirs * expected).sum(axis=1).min())
        yield f"lowest_cosine_{path}", cosine
        if not cosine >= LEAST_COSINE:
            raise RuntimeError(f"the embeddings are not those of sentence-transformers, cosine {cosine:.3f}")
        size = best_batch_size(peer, texts, given.device)
    except Exception as error:  # flash-attn is not installed, or not for this model or device; out of memory
        for figure in (f"lowest_cosine_{path}", f"vs_sentence_transformers_{path}"):
            yield figure, Missing.due_to(error)
        return
    yield f"sentence_transformers_{path}", f"batches of {size} documents, its fastest of {THEIR_BATCH_SIZES}"
    runs[path] = partial(peer.encode, texts, batch_size=size, show_progress_bar=False)


def compiled_rates(given: Conditions) -> Iterator[tuple[str, Result]]:
    """Yields `COMPILED_FIGURES`: ours with torch.compile, beside ours without it.

    Raises:
        Exception: Ours does not run.
    """
    torch.set_num_threads(given.threads)
    warnings = Warnings()
    save_encoder(ENCODERS[given.encoder], given.folder, given.is_tiny)
    encoder, _ = given.load()
    texts = given.texts_for(encoder)
    yield "documents", float(len(texts))
    compiled, seconds_to_load = given.load(torch_compile=True)
    yield "load_s", seconds_to_load
    yield "encoder", str(compiled)
    if not compiled.forward_pass.is_compiled:
        raise RuntimeError("; ".join(warnings.messages))
    n_tokens = int(encoder.tokenize(texts).n_tokens.sum())
    runs = {"uncompiled": partial(embed, texts, encoder), "compiled": partial(embed, texts, compiled)}
    for n_rounds, seconds in enumerate(alternating(given.rounds, runs, given.until), 1):
        yield "tokens_per_s", n_tokens / seconds["compiled"]
        yield "vs_uncompiled", seconds["uncompiled"] / seconds["compiled"]
        yield "rounds", float(n_rounds)


class Warnings(logging.Handler):
    """Collects the warnings of our encoder: why it does without a faster path."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []
        logging.getLogger("mlfilter_core").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def embed(texts: list[str], encoder: Encoder) -> NDArray[np.float32]:
    """Encodes a window of documents while the next one is tokenised, as the embedding pipeline does."""

    def tokenize() -> Iterator[TokenizedTexts]:
        for start in range(0, len(texts), WINDOW_DOCUMENTS):
            yield encoder.tokenize(texts[start : start + WINDOW_DOCUMENTS])

    with Stages("tokenizing", "encoding") as stages:
        encoded = [encoder.encode(tokenized) for tokenized in stages.run(tokenize())]
        return np.concatenate([window.embeddings() for window in encoded])


def sentence_transformers(folder: Path, device: str, max_length: int, attention: str) -> SentenceTransformer:
    """Returns the same model in bfloat16 with the requested attention."""
    arguments = {"dtype": torch.bfloat16, "attn_implementation": attention}
    model = SentenceTransformer(str(folder), device=device, model_kwargs=arguments)
    model.max_seq_length = max_length
    return model


def best_batch_size(model: SentenceTransformer, texts: list[str], device: str) -> int:
    """Returns the batch size with which sentence-transformers is fastest; it sorts the texts by length itself.

    Tried on an eighth of the texts, spread evenly over their lengths.

    Raises:
        OutOfMemoryError: Not even the smallest fits in memory.
    """
    sample = sorted(texts, key=len, reverse=True)[::8]
    seconds: dict[int, float] = {}
    for size in THEIR_BATCH_SIZES:
        try:
            for _ in range(2):  # the first run warms up
                started = time.perf_counter()
                model.encode(sample, batch_size=size, show_progress_bar=False)
                synchronize(device)
                seconds[size] = time.perf_counter() - started
        except torch.OutOfMemoryError:
            seconds.pop(size, None)
            torch.cuda.empty_cache()
            if not seconds:
                raise
            break
        if seconds[size] > CLEARLY_SLOWER * min(seconds.values()) or size >= len(sample):
            break
    return min(seconds, key=lambda size: seconds[size])
