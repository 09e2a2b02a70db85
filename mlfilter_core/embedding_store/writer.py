"""Documents and their embeddings to a new HDF5 file."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from mlfilter_core.corpus.documents import Document, hash_text
from mlfilter_core.embedding_store.careful_disk import CarefulDisk
from mlfilter_core.embedding_store.int8 import quantize
from mlfilter_core.embedding_store.layout import (
    CHUNK_ROWS,
    DOCUMENT_ID,
    EMBEDDING_SCALE,
    EMBEDDINGS,
    FIRST_CHUNK,
    FORMAT_VERSION,
    LABELS,
    N_TOKENS,
    SOURCE_LINE,
    SOURCE_OFFSET,
    TEXT_HASH,
    Provenance,
    index_name,
)

CHUNK_BYTES = 1 << 20
MOST_WAITING_BYTES = 8 << 20  # of the first rows, before they are written
# Structures of HDF5 1.10, of 2016: a small file has a sixth of the bytes that older ones take, and they have checksums.
HDF5_VERSION = ("v110", "v110")
METADATA_BYTES = 512  # that HDF5 reserves at a time: 2,048 by default
_UTF8 = h5py.string_dtype("utf-8")


class EmbeddingWriter:
    """Writes one new HDF5 file. Use it as a context manager; `finish` makes the file valid.

    Memory does not depend on the number of rows. If writing fails, as on a full disk, `append`, `finish` or the end of
    the block raises an OSError with the system's reason and the file's name.
    """

    def __init__(
        self,
        path: Path,
        group: str,
        *,
        dim: int,
        embedding_dtype: str,
        label_shape: tuple[int, ...] | None,
        label_dtype: str,
        index_keys: Sequence[str],
        slice_rows: int,
        has_chunks: bool = False,
    ) -> None:
        """Creates the file.

        Args:
            path: The file; an existing file is replaced.
            group: Name of the group of the datasets.
            dim: Width of an embedding.
            embedding_dtype: `float32`, `float16`, or `int8` with a scale for each row.
            label_shape: Shape of a document's labels: () gives (n,), (k,) gives (n, k), None writes no labels.
            label_dtype: NumPy name of the labels' dtype.
            index_keys: Keys of each document's `index`.
            slice_rows: Documents per write.
            has_chunks: Whether documents have several embeddings, one for each chunk.
        """
        self._disk = CarefulDisk(path)
        self._file = h5py.File(self._disk, "w", libver=HDF5_VERSION, locking=False, meta_block_size=METADATA_BYTES)
        self._group = self._file.create_group(group)
        self._dim = dim
        self._embedding_dtype = np.dtype(embedding_dtype)
        self._is_int8 = self._embedding_dtype == np.int8
        self._label_shape = label_shape
        self._label_dtype = np.dtype(label_dtype)
        self._index_names = [index_name(key) for key in index_keys]
        self._slice_rows = slice_rows
        self._has_chunks = has_chunks
        self._n_rows = 0
        self._n_chunks = 0
        self._datasets: dict[str, h5py.Dataset] = {}
        # The first rows, until they fill a chunk or the file ends: a small file has chunks of its own size.
        self._first: list[tuple[Mapping[str, Any], Mapping[str, Any]]] | None = []
        self._n_waiting_bytes = 0

    def __enter__(self) -> "EmbeddingWriter":
        return self

    def __exit__(self, error_type: object, error: BaseException | None, traceback: object) -> None:
        try:
            self._file.close()
        finally:
            self._disk.close()
        if error is None:
            self._disk.check()

    def append(
        self,
        documents: Sequence[Document],
        embeddings: NDArray[np.float32],
        n_tokens: NDArray[np.int32],
        n_chunks: NDArray[np.int32] | None = None,
    ) -> None:
        """Adds documents.

        Args:
            documents: Documents.
            embeddings: float32 (n_documents or sum of n_chunks, dim), finite, in the order of the documents.
            n_tokens: int32 (n_documents,).
            n_chunks: int32 (n_documents,), embeddings of each; None where each has one.
        """
        n_chunks = np.ones(len(documents), np.int32) if n_chunks is None else n_chunks
        ends = np.cumsum(n_chunks, dtype=np.int64)
        for start in range(0, len(documents), self._slice_rows):
            rows = slice(start, start + self._slice_rows)
            of_rows = slice(int(ends[start] - n_chunks[start]), int(ends[rows][-1]))
            self._append_slice(documents[rows], embeddings[of_rows], n_tokens[rows], n_chunks[rows])

    def append_stored(self, columns: Mapping[str, Any], of_chunks: Mapping[str, Any]) -> None:
        """Adds documents as another file of the same kind stores them.

        Args:
            columns: Values of each dataset with a row per document; `first_chunk` counts from the first document.
            of_chunks: Values of each dataset with a row per embedding.
        """
        columns = dict(columns)
        if self._has_chunks:
            columns[FIRST_CHUNK] = columns[FIRST_CHUNK] + self._n_chunks
        self._add(columns, of_chunks)

    def finish(self, provenance: Provenance) -> None:
        """Writes the provenance; after it the file is valid."""
        self._write_first(is_all=True)
        attributes = self._group.attrs
        attributes["format_version"] = FORMAT_VERSION
        for name in Provenance.__dataclass_fields__:
            attributes[name] = json.dumps(dict(getattr(provenance, name)), sort_keys=True)
        self._disk.check()

    def _create_datasets(self, n: int | None, n_embeddings: int | None) -> None:
        """Creates datasets for a number of documents and embeddings, or such that grow."""
        row_bytes = self._dim * self._embedding_dtype.itemsize
        chunk_rows = min(CHUNK_ROWS, CHUNK_BYTES // row_bytes or 1)
        self._create(EMBEDDINGS, self._embedding_dtype, (self._dim,), n_embeddings, chunk_rows)
        for name in (DOCUMENT_ID, *self._index_names):
            self._create(name, _UTF8, (), n)
        if self._is_int8:
            self._create(EMBEDDING_SCALE, np.dtype(np.float32), (), n_embeddings)
        if self._has_chunks:
            self._create(FIRST_CHUNK, np.dtype(np.int64), (), n)
        self._create(SOURCE_LINE, np.dtype(np.int64), (), n)
        self._create(SOURCE_OFFSET, np.dtype(np.int64), (), n)
        self._create(N_TOKENS, np.dtype(np.int32), (), n)
        self._create(TEXT_HASH, np.dtype(np.uint64), (), n)
        if self._label_shape is not None:
            self._create(LABELS, self._label_dtype, self._label_shape, n)

    def _create(
        self, name: str, dtype: Any, width: tuple[int, ...], n_rows: int | None, chunk_rows: int = CHUNK_ROWS
    ) -> None:
        self._datasets[name] = self._group.create_dataset(
            name,
            (n_rows or 0, *width),
            dtype,
            maxshape=(n_rows or None, *width),  # HDF5 refuses chunks in a dataset of the fixed length 0
            chunks=(min(chunk_rows, n_rows or chunk_rows), *width),
            # HDF5 reports a chunk whose bytes have changed when it is read. Strings are stored outside of the chunks.
            fletcher32=dtype is not _UTF8,
        )

    def _append_slice(
        self,
        documents: Sequence[Document],
        embeddings: NDArray[np.float32],
        n_tokens: NDArray[np.int32],
        n_chunks: NDArray[np.int32],
    ) -> None:
        columns: dict[str, Any] = {
            DOCUMENT_ID: [document.id for document in documents],
            SOURCE_LINE: [document.line for document in documents],
            SOURCE_OFFSET: [document.offset for document in documents],
            N_TOKENS: n_tokens,
            TEXT_HASH: np.array([hash_text(document.text) for document in documents], np.uint64),
        }
        of_chunks: dict[str, Any] = {}
        if self._is_int8:
            of_chunks[EMBEDDINGS], of_chunks[EMBEDDING_SCALE] = quantize(embeddings)
        else:
            of_chunks[EMBEDDINGS] = embeddings.astype(self._embedding_dtype, copy=False)
        if self._has_chunks:
            columns[FIRST_CHUNK] = self._n_chunks + np.cumsum(n_chunks, dtype=np.int64) - n_chunks
        for i, name in enumerate(self._index_names):
            columns[name] = [document.index[i] for document in documents]
        if self._label_shape is not None:
            labels = np.array([document.labels for document in documents], self._label_dtype)
            columns[LABELS] = labels.reshape(len(documents), *self._label_shape)
        self._add(columns, of_chunks)

    def _add(self, columns: Mapping[str, Any], of_chunks: Mapping[str, Any]) -> None:
        start, start_of_chunks = self._n_rows, self._n_chunks
        self._n_rows += len(columns[DOCUMENT_ID])
        self._n_chunks += len(of_chunks[EMBEDDINGS])
        if self._first is None:
            self._extend(columns, start)
            self._extend(of_chunks, start_of_chunks)
            self._disk.check()
            return
        self._first.append((_copied(columns), _copied(of_chunks)))  # the caller may use its arrays again
        self._n_waiting_bytes += _n_bytes(columns) + _n_bytes(of_chunks)
        if max(self._n_rows, self._n_chunks) >= CHUNK_ROWS or self._n_waiting_bytes >= MOST_WAITING_BYTES:
            self._write_first(is_all=False)

    def _write_first(self, is_all: bool) -> None:
        """Creates the datasets and writes the first rows, unless that is done; `is_all` if no others follow."""
        if self._first is None:
            return
        self._create_datasets(*((self._n_rows, self._n_chunks) if is_all else (None, None)))
        start = start_of_chunks = 0
        for columns, of_chunks in self._first:
            start = self._extend(columns, start)
            start_of_chunks = self._extend(of_chunks, start_of_chunks)
        self._first = None
        self._disk.check()

    def _extend(self, columns: Mapping[str, Any], start: int) -> int:
        """Writes rows of some datasets from row `start` on; returns the number of rows."""
        end = start
        for name, values in columns.items():
            dataset, end = self._datasets[name], start + len(values)
            if len(dataset) < end:
                dataset.resize(end, axis=0)
            dataset[start:end] = values
        return end


def _n_bytes(columns: Mapping[str, Any]) -> int:
    """Returns the bytes of some columns, about one for each character of a string."""
    return sum(
        values.nbytes if isinstance(values, np.ndarray) and values.dtype != object else sum(map(_length, values))
        for values in columns.values()
    )


def _length(value: Any) -> int:
    return len(value) if isinstance(value, str | bytes) else 8


def _copied(columns: Mapping[str, Any]) -> dict[str, Any]:
    return {name: values.copy() for name, values in columns.items()}
