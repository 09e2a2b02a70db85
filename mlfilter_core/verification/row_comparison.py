"""Compares the rows of a file of embeddings with the documents of its source.

Knows nothing about the embeddings themselves.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlfilter_core.corpus.documents import Document, DocumentSchema, hash_text
from mlfilter_core.embedding_store.layout import (
    DOCUMENT_ID,
    LABELS,
    SOURCE_LINE,
    SOURCE_OFFSET,
    TEXT_HASH,
    Provenance,
    index_name,
)
from mlfilter_core.embedding_store.reader import EmbeddingFile
from mlfilter_core.verification.discrepancies import Findings
from mlfilter_core.verification.source_account import schema_of

N_SHOWN_CHARACTERS = 60


class RowComparison:
    """Compares the rows of a file with the documents of its source, both in order.

    Memory grows by only eight bytes per row.
    """

    def __init__(self, file: EmbeddingFile, made: Provenance, findings: Findings) -> None:
        self._file = file
        self._counts = made.counts
        self._schema = schema_of(made.request)
        self._findings = findings
        self._n_documents = 0
        self._are_in_order = True
        self._id_hashes: list[NDArray[np.int64]] = []

    def compare(self, documents: Sequence[Document]) -> None:
        """Compares the next rows with the next documents."""
        rows = slice(self._n_documents, min(self._n_documents + len(documents), self._file.n_rows))
        self._n_documents += len(documents)
        # A hash takes eight bytes, an id many more.
        self._id_hashes.append(np.fromiter((hash(document.id) for document in documents), np.int64, len(documents)))
        documents = documents[: max(0, rows.stop - rows.start)]
        for name, expected in _expected_columns(documents, self._schema).items():
            if self._are_in_order and documents:
                # Strings stay bytes, as in the file: decoding would take longer than reading.
                stored = self._file.array(name, rows).tolist()
                if stored != expected:
                    self._add_differences(name, stored, expected, documents, rows.start)

    def check_complete(self) -> None:
        """Checks the numbers of documents and of duplicate ids, after the last document."""
        if self._n_documents != self._file.n_rows:
            documents = f"{self._n_documents:,} documents are in the source and not rejected"
            self._findings.add("documents", f"{documents}, and there are {self._file.n_rows:,} rows")
            return
        hashes = np.concatenate(self._id_hashes)
        stated, n_duplicates = self._counts["duplicate_ids"], len(hashes) - len(np.unique(hashes))
        if n_duplicates != stated:
            ids = f"it states {stated:,} ids that an earlier document has"
            self._findings.add("duplicate_ids", f"{ids}, and there are {n_duplicates:,}")

    def _add_differences(
        self, name: str, stored: list[Any], expected: list[Any], documents: Sequence[Document], start: int
    ) -> None:
        for i, (found, given) in enumerate(zip(stored, expected, strict=True)):
            if found != given:
                row = f"row {start + i}: {name} is {_shown(found)}"
                self._findings.add(name, f"{row}, line {documents[i].line} of the source gives {_shown(given)}")
                if name == SOURCE_LINE:  # later rows and documents may be shifted: all would differ
                    self._are_in_order = False
                    return


def _expected_columns(documents: Sequence[Document], schema: DocumentSchema) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {
        SOURCE_LINE: [document.line for document in documents],
        SOURCE_OFFSET: [document.offset for document in documents],
        DOCUMENT_ID: [document.id.encode() for document in documents],
        TEXT_HASH: [hash_text(document.text) for document in documents],
    }
    for i, key in enumerate(schema.index_keys):
        columns[index_name(key)] = [document.index[i].encode() for document in documents]
    if schema.label_shape is not None:
        labels = np.array([document.labels for document in documents], schema.label_dtype)
        columns[LABELS] = labels.reshape(len(documents), *schema.label_shape).tolist()
    return columns


def _shown(value: Any) -> str:
    if not isinstance(value, bytes):
        return str(value)
    text = value.decode(errors="replace")
    return f'"{text[:N_SHOWN_CHARACTERS]}..."' if len(text) > N_SHOWN_CHARACTERS else f'"{text}"'
