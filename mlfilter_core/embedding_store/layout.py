"""Names in the formats of embeddings and of what is made from them, chunk sizes of HDF5, provenance.

docs/reference/formats.md describes it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

EMBEDDING_SUFFIXES = (".h5", ".hdf5")
FORMAT_VERSION = 1
EMBEDDINGS = "embeddings"
EMBEDDING_SCALE = "embedding_scale"  # only where embeddings are int8
FIRST_CHUNK = "first_chunk"  # only where documents have several embeddings
DOCUMENT_ID = "document_id"
LABELS = "labels"
INDEX = "index"
SOURCE_LINE = "source_line"
SOURCE_OFFSET = "source_offset"
N_TOKENS = "n_tokens"
TEXT_HASH = "text_hash"
# Of a file of clusters, and of the lines that have them.
CLUSTER_KEYS = CLUSTER, DISTANCE, NAME = "cluster", "cluster_distance", "cluster_name"

# HDF5 reads and writes whole chunks: large enough for streaming, small enough to stay in its cache.
CHUNK_ROWS = 4096
OPTIONAL_PROVENANCE = ("statistics",)  # missing in files of earlier releases


def index_name(key: str) -> str:
    """Returns the name of the dataset of an index key."""
    return f"{INDEX}/{key.replace('/', '_')}"


@dataclass(frozen=True)
class Provenance:
    """How a file of embeddings was made.

    Attributes:
        source: `path` relative to `folder`, `bytes`, `mtime_ns`, `sha256` of the source file.
        request: Settings that change the content: encoder, keys, dtypes.
        encoder: Properties of the loaded encoder: dim, pooling, prompt, max_length, is_normalized.
        counts: `lines`, `documents`, `rejected`, `blank`, `truncated`, `duplicate_ids`, `tokens`, perhaps `chunks`.
        versions: Versions of the libraries that wrote the file.
        statistics: `document_tokens`, the histogram of tokens per document; empty in older files.
    """

    source: Mapping[str, Any]
    request: Mapping[str, Any]
    encoder: Mapping[str, Any]
    counts: Mapping[str, Any]
    versions: Mapping[str, Any]
    statistics: Mapping[str, Any] = field(default_factory=dict)
