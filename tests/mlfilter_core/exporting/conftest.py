"""Files of embeddings with real scores, to export."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mlfilter_core.annotating.annotate_file import annotate_file
from mlfilter_core.annotating.annotate_request import AnnotateRequest
from mlfilter_core.corpus.documents import Document
from mlfilter_core.embedding_store.layout import Provenance
from mlfilter_core.embedding_store.writer import EmbeddingWriter
from mlfilter_core.exporting.export_folder import ExportTotals, export
from mlfilter_core.exporting.export_request import ExportRequest
from mlfilter_core.files.task_files import TaskFile
from mlfilter_core.heads.head import Head
from mlfilter_core.versions import library_versions
from tests.conftest import TINY_DIM

COUNTS = ("lines", "rejected", "blank", "truncated", "duplicate_ids", "tokens")


@dataclass(frozen=True)
class Inputs:
    """An output folder of jobs, and its heads."""

    folder: Path
    heads: list[Head]

    @property
    def embeddings(self) -> Path:
        return self.folder / "embeddings"

    @property
    def annotated(self) -> Path:
        return self.folder / "annotated_data"

    def embed(
        self, name: str, n: int, dtype: str = "float32", n_chunks: list[int] | None = None, prompt: str = ""
    ) -> NDArray[np.float32]:
        """Writes embeddings of n documents with two labels each to `embeddings/<name>.h5`, and returns them."""
        chunks = np.array(n_chunks or [1] * n, np.int32)
        vectors = np.random.default_rng(len(name)).standard_normal((int(chunks.sum()), TINY_DIM), np.float32)
        documents = [
            Document(i + 1, 10 * i, f"{name}-ä{i}", f"text {i}", (f"lang-{i % 2}",), (i, i + 0.5)) for i in range(n)
        ]
        path = self.embeddings / f"{name}.h5"
        path.parent.mkdir(parents=True, exist_ok=True)
        with EmbeddingWriter(
            *(path, "train"),
            **{"dim": TINY_DIM, "embedding_dtype": dtype, "label_shape": (2,), "label_dtype": "float32"},
            **{"index_keys": ["meta/lang"], "slice_rows": 3 if n < 100 else n, "has_chunks": n_chunks is not None},
        ) as writer:
            writer.append(documents, vectors, np.arange(1, n + 1, dtype=np.int32), chunks)
            writer.finish(
                Provenance(
                    source={
                        "path": f"{name}.jsonl",
                        "folder": "/corpus",
                        "bytes": n,
                        "mtime_ns": 4,
                        "sha256": f"{n:064}",
                    },
                    request={"model": "tiny", "max_line_bytes": 5, "id_key": None, "prompt": prompt, "dtype": dtype},
                    encoder={"is_normalized": False, "weights_sha256": "b" * 64},
                    counts={**dict.fromkeys(COUNTS, 0), "documents": n},
                    versions=library_versions(),
                )
            )
        return vectors

    def annotate(self, name: str, **changes: Any) -> None:
        """Scores `embeddings/<name>.h5`."""
        request = AnnotateRequest(self.annotated, {head.name: head.name for head in self.heads}, **changes)
        annotate_file(TaskFile(f"{name}.h5", name, self.embeddings), request, self.heads)


Export = Callable[..., ExportTotals]


@pytest.fixture
def inputs(tmp_path: Path, heads: list[Head]) -> Inputs:
    return Inputs(tmp_path / "out", heads)


@pytest.fixture
def run(inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Export:
    """Exports to `exported/`, in this process; keywords change the request. `on_file` gets the reports."""

    def in_this_process(function: Any, items: Any, n_processes: int, died: Any) -> Iterator[Any]:
        return (function(item) for item, _ in items)

    monkeypatch.setattr("mlfilter_core.exporting.export_folder.in_processes", in_this_process)

    def run_export(on_file: Any = lambda report: None, **changes: Any) -> ExportTotals:
        settings = {"embeddings": inputs.embeddings, "output_dir": tmp_path / "exported", **changes}
        return export(ExportRequest(**settings), 1, on_file)

    return run_export
