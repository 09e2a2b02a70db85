"""The HDF5 format of embeddings: names of datasets, shapes of chunks, the provenance.

README § Data formats describes it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

EMBEDDING_SUFFIXES = (".h5", ".hdf5")
FORMAT_VERSION = 1
EMBEDDINGS = "embeddings"
DOCUMENT_ID = "document_id"
LABELS = "labels"
INDEX = "index"
SOURCE_LINE = "source_line"
SOURCE_OFFSET = "source_offset"
N_TOKENS = "n_tokens"
TEXT_HASH = "text_hash"

# HDF5 reads and writes whole chunks: large enough for streaming, small enough to stay in its cache.
CHUNK_ROWS = 4096
OPTIONAL_PROVENANCE = ("statistics",)  # files of earlier releases lack them


@dataclass(frozen=True)
class Provenance:
    """Where a file of embeddings comes from.

    Attributes:
        source: `path` relative to `folder`, `bytes`, `mtime_ns`, `sha256` of the source file.
        request: Everything that was asked for and changes the content: encoder, keys, dtypes.
        encoder: What the model made of it: dim, pooling, prompt, max_length, is_normalized.
        counts: `lines`, `documents`, `rejected`, `blank`, `truncated`, `duplicate_ids`, `tokens`.
        versions: Of the libraries that wrote the file.
        statistics: `document_tokens`, the histogram of the documents' token counts; empty in older files.
    """

    source: Mapping[str, Any]
    request: Mapping[str, Any]
    encoder: Mapping[str, Any]
    counts: Mapping[str, Any]
    versions: Mapping[str, Any]
    statistics: Mapping[str, Any] = field(default_factory=dict)
