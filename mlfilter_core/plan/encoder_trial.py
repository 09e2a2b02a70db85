"""How fast this machine embeds sampled documents, measured by embedding them."""

import logging
import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mlfilter_core.config.embedding import EmbeddingPipelineParameters
from mlfilter_core.corpus.windows import WINDOW_DOCUMENTS
from mlfilter_core.embedding.bottleneck import bottleneck
from mlfilter_core.embedding.embed_file import embed_file
from mlfilter_core.embedding.embed_request import EmbedRequest
from mlfilter_core.files.task_files import TaskFile
from mlfilter_core.plan.corpus_sample import CorpusSample
from mlfilter_core.plan.findings import Findings
from mlfilter_core.plan.worker_memory import peak_memory_bytes

if TYPE_CHECKING:
    from mlfilter_core.encoder.encoder import Encoder

MEASURED_S = 8.0  # long enough to make the start of the threads and the first, largest batch negligible
N_FIRST = 16  # documents of a first trial; their speed determines the number for the measurement
MAX_DOCUMENTS = 20_000  # for a fast device
N_COMPARED = 8
MAX_COMPARED_CHARACTERS = 20_000
SHORTEST_TEXTS = ("a", ".", "two words")


@dataclass(frozen=True)
class LoadedEncoder:
    """The encoder of a job.

    Attributes:
        request: Request of the job.
        encoder: The encoder, loaded.
        load_s: Seconds to load it.
    """

    request: EmbedRequest
    encoder: "Encoder"
    load_s: float


@dataclass(frozen=True)
class EncoderTrial:
    """The cost of embedding sampled documents.

    Attributes:
        documents: Number of documents that were embedded.
        tokens: Number of their tokens.
        seconds: Seconds from the JSONL file to the HDF5 file.
        bottleneck: The stage that waited least.
        peak_bytes: Peak memory of this process.
        peak_gpu_bytes: Peak memory of the GPU.
        device: Device of the encoder.
        threads: Threads of torch.
        tokenizer_tokens_per_s: Tokens that one core tokenizes in a second.
        encoder_tokens_per_s: Tokens that the encoder encodes in a second: a GPU alone; a CPU, which tokenizes with the
            same cores, with all stages.
    """

    documents: int
    tokens: int
    seconds: float
    bottleneck: str
    peak_bytes: int
    peak_gpu_bytes: int
    device: str
    threads: int
    tokenizer_tokens_per_s: float
    encoder_tokens_per_s: float

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds

    @property
    def documents_per_s(self) -> float:
        return self.documents / self.seconds

    @property
    def tokenizing_cores(self) -> float:
        """Cores that tokenize as fast as the encoder encodes."""
        return self.encoder_tokens_per_s / self.tokenizer_tokens_per_s


def load_for_trial(
    params: EmbeddingPipelineParameters, request: EmbedRequest, device: str, has_openvino: bool, findings: Findings
) -> LoadedEncoder | None:
    """Returns the encoder of a job; where it does not load, notes why and returns None."""
    from mlfilter_core.encoder.loading import load_encoder

    started = time.monotonic()
    with findings.noting():
        encoder = load_encoder(
            *(request.model, request.encoder, device, params.batch_token_limit, params.torch_compile),
            has_openvino=has_openvino,
        )
        return LoadedEncoder(request, encoder, time.monotonic() - started)
    return None


def time_embedding(sample: CorpusSample, loaded: LoadedEncoder) -> EncoderTrial | None:
    """Embeds sampled documents as the job would, from a JSONL file to an HDF5 file, for some seconds.

    Returns:
        None where there are no documents.
    """
    lines = [line for piece in sample.pieces for line in piece.lines]
    if not lines:
        return None
    lines = [lines[i] for i in np.random.default_rng(0).permutation(len(lines)).tolist()]
    with tempfile.TemporaryDirectory(prefix="mlfilter-plan-") as folder:
        trial = _embed(lines[:N_FIRST], Path(folder), loaded)
        n_wanted = min(int(trial.documents * MEASURED_S / trial.seconds), MAX_DOCUMENTS)
        if n_wanted > trial.documents:
            repeats = -(-n_wanted // len(lines))  # a fast device embeds all of them in no time
            trial = _embed((lines * repeats)[:n_wanted], Path(folder), loaded)
    n_texts = min(max(n_wanted, N_FIRST), WINDOW_DOCUMENTS)
    return _with_stages_apart(trial, [document.text for document in islice(cycle(sample.documents), n_texts)], loaded)


def compare_with_sentence_transformers(sample: CorpusSample, loaded: LoadedEncoder) -> tuple[float, int] | str:
    """Returns the lowest cosine of some embeddings with those of `SentenceTransformer.encode`, and their number.

    Short and long documents are compared, texts of a word, and one of the tokenizer's special tokens, in the job's
    dtype. sentence-transformers gets one text at a time, so that padding has no effect. Where nothing can be compared,
    the reason is returned.
    """
    request, encoder = loaded.request, loaded.encoder
    if not (request.model.folder / "modules.json").is_file():
        return "the model is not a sentence-transformers folder"
    if request.encoder.pooling is not None:
        return "params.pooling replaces the pooling of the model"
    texts = sorted((document.text[:MAX_COMPARED_CHARACTERS] for document in sample.documents), key=len)
    if not texts:
        return "there are no documents"
    texts = [texts[i] for i in np.unique(np.linspace(0, len(texts) - 1, N_COMPARED).astype(int))]
    if request.encoder.add_eos:
        return "params.add_eos ends texts with another token"
    from sentence_transformers import SentenceTransformer

    from mlfilter_core.encoder.static_embedding import is_static

    theirs = SentenceTransformer(
        str(request.model.folder),
        device=str(encoder.device),
        trust_remote_code=request.encoder.trust_remote_code,
        truncate_dim=request.encoder.embedding_dim,
        model_kwargs={"dtype": encoder.forward_pass.dtype},
    )
    if encoder.max_length is not None and is_static(theirs):
        theirs.tokenizer.enable_truncation(encoder.max_length)
    elif encoder.max_length is not None:
        theirs.max_seq_length = encoder.max_length
    special = " and ".join(encoder.special_tokens)
    texts += [*SHORTEST_TEXTS, f"Tokens such as {special} have a meaning of their own."]
    encoded = theirs.encode(
        texts, prompt=encoder.prompt or None, batch_size=1, show_progress_bar=False, convert_to_tensor=True
    )
    expected = encoded.float().cpu().numpy()
    tokens = encoder.tokenize(texts)
    first = np.cumsum(tokens.n_chunks) - tokens.n_chunks  # what truncation to one chunk leaves
    ours = encoder.encode(tokens).embeddings()[first]
    lengths = np.linalg.norm(expected, axis=1) * np.linalg.norm(ours, axis=1)
    return float(((expected * ours).sum(axis=1) / lengths).min()), len(texts)


def _embed(lines: Sequence[bytes], folder: Path, loaded: LoadedEncoder) -> EncoderTrial:
    import torch

    source = folder / "sample.jsonl"
    source.write_bytes(b"".join(line + b"\n" for line in lines))
    file = TaskFile(source.name, source.stem, folder)
    # Rejected lines, one or many, do not matter here.
    request = replace(loaded.request, fail_on_bad_record=False, max_rejected_fraction=1.0)
    log = logging.getLogger("mlfilter_core")
    level = log.level
    log.setLevel(logging.ERROR)  # repeated documents cause warnings
    try:
        started = time.monotonic()
        report = embed_file(file, folder / "sample.h5", folder / "rejected.jsonl", request, loaded.encoder)
        seconds = time.monotonic() - started
    finally:
        log.setLevel(level)
    return EncoderTrial(
        documents=report.documents,
        tokens=report.tokens,
        seconds=max(seconds, 1e-6),
        bottleneck=bottleneck(report.waited) or "",
        peak_bytes=peak_memory_bytes(),
        peak_gpu_bytes=loaded.encoder.gpu_memory_bytes(),
        device=str(loaded.encoder.device),
        threads=torch.get_num_threads(),
        tokenizer_tokens_per_s=math.inf,
        encoder_tokens_per_s=report.tokens / max(seconds, 1e-6),
    )


def _with_stages_apart(trial: EncoderTrial, texts: Sequence[str], loaded: LoadedEncoder) -> EncoderTrial:
    """Measures tokenizing by the time of all cores, whatever their number, and the encoder of a GPU without it."""
    encoder = loaded.encoder
    started = time.process_time()
    tokenized = encoder.tokenize(texts)
    tokenizing_s = max(time.process_time() - started, 1e-6)
    n_tokens = int(tokenized.n_tokens.sum())
    trial = replace(trial, tokenizer_tokens_per_s=n_tokens / tokenizing_s)
    if trial.device == "cpu":
        return trial
    started = time.perf_counter()
    encoder.encode(tokenized).embeddings()
    return replace(trial, encoder_tokens_per_s=n_tokens / (time.perf_counter() - started))
