"""Files of labelled embeddings, as the embedding pipeline writes them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mlfilter_core.corpus.documents import Document
from mlfilter_core.embedding_store.layout import Provenance
from mlfilter_core.embedding_store.writer import EmbeddingWriter
from mlfilter_core.versions import library_versions

DIM = 8
WEIGHTS = np.random.default_rng(7).standard_normal(DIM).astype(np.float32)

WriteLabelled = Callable[..., Path]


def column(*labels: float) -> NDArray[np.float32]:
    """Returns labels of one target, (n, 1)."""
    return np.array(labels, np.float32)[:, None]


def embeddings_of(n: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((n, DIM), np.float32)


def label_of(embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns a linear function of the embeddings, around 2.5, that a linear head can learn."""
    return 2.5 + embeddings @ WEIGHTS / 3


@pytest.fixture
def write_labelled(tmp_path: Path) -> WriteLabelled:
    """Writes documents with embeddings from `embeddings_of`, and labels from `label_of` or given ones.

    `texts` may repeat a text; `label_keys` are those of an embedding job.
    """

    def write(
        name: str = "x.h5",
        n: int = 200,
        labels: Any = None,
        label_keys: str | list[str] | None = "score",
        texts: Sequence[str] | None = None,
        seed: int = 0,
        weights_sha256: str = "a" * 64,
    ) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        embeddings = embeddings_of(n, seed)
        given = label_of(embeddings) if labels is None else np.asarray(labels, np.float32)
        documents = [
            Document(i + 1, 10 * i, f"{path.stem}-{i}", texts[i] if texts else f"{name} {i}", (), tuple(row))
            for i, row in enumerate(given.reshape(n, -1).tolist())
        ]
        shape = () if isinstance(label_keys, str) else (len(label_keys),) if label_keys else None
        settings: dict[str, Any] = {"label_dtype": "float32", "index_keys": (), "slice_rows": 1024}
        with EmbeddingWriter(
            path, "train", dim=DIM, embedding_dtype="float32", label_shape=shape, **settings
        ) as writer:
            writer.append(documents, embeddings, np.ones(n, np.int32))
            writer.finish(provenance(n, label_keys, weights_sha256))
        return path

    return write


def provenance(n: int, label_keys: str | list[str] | None, weights_sha256: str) -> Provenance:
    return Provenance(
        source={"path": "x.jsonl", "folder": "/corpus", "bytes": n, "mtime_ns": 4, "sha256": "b" * 64},
        request={"id_key": None, "max_line_bytes": 5, "label_keys": label_keys, "weights_sha256": weights_sha256},
        encoder={"is_normalized": False, "pooling": "mean", "max_length": 512},
        counts=dict.fromkeys(("lines", "documents", "rejected", "blank", "truncated", "duplicate_ids", "tokens"), n),
        versions=library_versions(),
    )
