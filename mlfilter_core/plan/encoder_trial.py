"""How fast this machine embeds sampled documents, measured by embedding them."""

import logging
import os
import resource
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mlfilter_core.embedding.embed_file import embed_file
from mlfilter_core.embedding.embed_request import EmbedRequest
from mlfilter_core.files.task_files import TaskFile
from mlfilter_core.plan.sampled_documents import SampledDocuments

if TYPE_CHECKING:
    from mlfilter_core.encoder.encoder import Encoder

# Long enough that the start of the threads and the first, largest batch do not count.
MEASURED_S = 8.0
N_FIRST = 16  # documents, by which the time for the others is guessed
MAX_DOCUMENTS = 20_000  # that a fast device is given
N_COMPARED = 8
MAX_COMPARED_CHARACTERS = 20_000

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trial:
    """What embedding sampled documents took.

    Attributes:
        documents: That were embedded.
        tokens: Of them.
        seconds: From the JSONL file to the HDF5 file, in steady state: all but the writer's opening and closing.
        file_bytes: Of the HDF5 file.
        limit: The stage that waited least.
        peak_bytes: That this process took of memory at most.
        peak_gpu_bytes: That it took of the GPU's.
        threads: Of torch.
    """

    documents: int
    tokens: int
    seconds: float
    file_bytes: int
    limit: str
    peak_bytes: int
    peak_gpu_bytes: int
    threads: int

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds

    @property
    def documents_per_s(self) -> float:
        return self.documents / self.seconds


def tokenize_sample(
    sampled: Sequence[SampledDocuments], encoder: "Encoder", request: EmbedRequest
) -> Sequence[SampledDocuments]:
    """Counts the tokens of all documents; those that the encoder would not take are rejected."""
    for documents in sampled:
        tokens = encoder.tokenize([document.text for document in documents.documents])
        documents.n_tokens = tokens.n_tokens.tolist()
        dropped = {int(i): "no_tokens" for i in np.flatnonzero(tokens.n_tokens == 0)}
        if not request.encoder.truncate:
            dropped |= {int(i): "too_many_tokens" for i in np.flatnonzero(tokens.is_cut)}
        documents.n_truncated = int(tokens.is_cut.sum()) if request.encoder.truncate else 0
        documents.reject(dropped)
    return sampled


def time_embedding(
    sampled: Sequence[SampledDocuments], encoder: "Encoder", request: EmbedRequest, scratch: Path | None = None
) -> Trial | None:
    """Embeds sampled documents as the job would, from a JSONL file to an HDF5 file, for some seconds.

    Args:
        sampled: After `tokenize_sample`.
        encoder: The job's.
        request: The job's.
        scratch: Folder for the two files, which are removed; None takes the system's.

    Returns:
        None where there are no documents.
    """
    lines = [line for documents in sampled for line in documents.lines]
    if not lines:
        return None
    order = np.random.default_rng(0).permutation(len(lines)).tolist()
    # A fault of one line, or of many, is no matter here.
    asked = replace(request, fail_on_bad_record=False, max_rejected_fraction=1.0)
    with tempfile.TemporaryDirectory(prefix="mlfilter-plan-", dir=scratch) as folder:
        first = _embed([lines[i] for i in order[:N_FIRST]], Path(folder), asked, encoder)
        n_wanted = int(first.documents * MEASURED_S / first.seconds)
        if n_wanted <= first.documents:
            return first
        chosen = [lines[i] for i in order]
        while len(chosen) < min(n_wanted, MAX_DOCUMENTS):  # a fast device has it all in no time
            chosen += chosen
        return _embed(chosen[: min(n_wanted, MAX_DOCUMENTS)], Path(folder), asked, encoder)


def compare_with_sentence_transformers(
    sampled: Sequence[SampledDocuments], encoder: "Encoder", request: EmbedRequest
) -> tuple[float, int] | str:
    """Returns the lowest cosine of some embeddings with those of `SentenceTransformer.encode`, and how many they are.

    Short documents are compared, and long ones. Where there is nothing to compare with, the reason is returned.
    """
    if not (request.model.folder / "modules.json").is_file():
        return "it is no sentence-transformers folder"
    if request.encoder.pooling is not None:
        return "params.pooling replaces its own"
    texts = [document.text for documents in sampled for document in documents.documents]
    texts = sorted((text[:MAX_COMPARED_CHARACTERS] for text in texts), key=len)
    if not texts:
        return "there are no documents"
    texts = [texts[i] for i in np.unique(np.linspace(0, len(texts) - 1, N_COMPARED).astype(int))]
    from sentence_transformers import SentenceTransformer

    theirs = SentenceTransformer(
        str(request.model.folder), device=str(encoder.device), trust_remote_code=request.encoder.trust_remote_code
    )
    if encoder.max_length is not None:
        theirs.max_seq_length = encoder.max_length
    expected = theirs.encode(texts, prompt=encoder.prompt or None, show_progress_bar=False)
    ours = encoder.encode(encoder.tokenize(texts)).embeddings()
    lengths = np.linalg.norm(expected, axis=1) * np.linalg.norm(ours, axis=1)
    return float(((expected * ours).sum(axis=1) / lengths).min()), len(texts)


def _embed(lines: Sequence[bytes], folder: Path, request: EmbedRequest, encoder: "Encoder") -> Trial:
    import torch

    source = folder / "sample.jsonl"
    source.write_bytes(b"".join(line + b"\n" for line in lines))
    output = folder / "sample.h5"
    level = logging.getLogger("mlfilter_core").level
    logging.getLogger("mlfilter_core").setLevel(logging.ERROR)  # documents may be there twice, which is no news
    try:
        started = time.monotonic()
        report = embed_file(
            TaskFile(source.name, source.stem, folder), output, folder / "rejected.jsonl", request, encoder
        )
        seconds = time.monotonic() - started
    finally:
        logging.getLogger("mlfilter_core").setLevel(level)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << (10 if os.uname().sysname == "Linux" else 0)
    limit = min(report.waited, key=lambda stage: report.waited[stage])
    return Trial(
        report.documents,
        report.tokens,
        max(seconds, 1e-6),
        output.stat().st_size,
        limit,
        peak,
        encoder.gpu_memory_bytes(),
        torch.get_num_threads(),
    )
