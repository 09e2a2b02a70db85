"""How large files of embeddings will be, by writing one."""

import tempfile
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path

import numpy as np

from mlfilter_core.corpus.documents import Document
from mlfilter_core.embedding.embed_request import EmbedRequest
from mlfilter_core.embedding_store.layout import Provenance
from mlfilter_core.versions import library_versions

MAX_WRITTEN_DOCUMENTS = 4096  # beyond, a file grows evenly
MAX_WRITTEN_BYTES = 256 << 20


def embedding_file_bytes(
    documents: Sequence[Document], documents_per_file: float, dim: int, request: EmbedRequest
) -> float:
    """Returns the size of a file of embeddings of so many documents like these.

    Args:
        documents: Sampled ones; one at least.
        documents_per_file: Of an average file.
        dim: Width of an embedding.
        request: What is stored of a document.
    """
    row_bytes = dim * np.dtype(request.embedding_dtype).itemsize
    n = max(1, min(round(documents_per_file), MAX_WRITTEN_DOCUMENTS, MAX_WRITTEN_BYTES // row_bytes))
    with tempfile.TemporaryDirectory(prefix="mlfilter-plan-") as folder:
        path = Path(folder) / "sample.h5"
        with request.open_writer(path, dim) as writer:
            rows = list(islice(cycle(documents), n))
            writer.append(rows, np.zeros((n, dim), request.embedding_dtype), np.zeros(n, np.int32))
            writer.finish(Provenance({}, request.provenance(), {}, {}, library_versions()))
        written = path.stat().st_size
    # A file of one batch has what a file needs besides rows, which does not grow.
    return written * max(1.0, documents_per_file / n)
