"""The HDF5 format of embeddings: what is in a file, how it is written, how it is read.

The one place that knows the names of groups, datasets and attributes; README § Data formats describes
them.
"""

import functools
import io
import json
import math
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from mlfilter_core.documents import Document, hash_text
from mlfilter_core.errors import EmbeddingFileError, in_one_line
from mlfilter_core.file_identity import file_identity
from mlfilter_core.publishing import naming

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
CHUNK_BYTES = 1 << 20
CHUNK_ROWS = 4096
MIN_CHUNK_ROWS = 32  # arbitrary: 48 kB of a small file at most, and no chunk for each row after a first long one
UNIT_LENGTH_TOLERANCE = 5e-3  # float16 keeps three digits
# What a file may claim to hold. All three are arbitrary, and far from what any encoder or tool writes: the widest
# embeddings take 64 KiB, h5py makes chunks of 1 MiB, and embeddings hardly compress at all.
MAX_ROW_BYTES = 1 << 20
MAX_CHUNK_BYTES = 1 << 30
MAX_EXPANSION, FREE_BYTES = 1000, 1 << 30
_UTF8 = h5py.string_dtype("utf-8")
# What the readers of a provenance rely on, and its type there.
_PROVENANCE_VALUES: Mapping[str, Mapping[str, Any]] = {
    "source": {"path": str, "folder": str, "bytes": int, "mtime_ns": int, "sha256": str},
    "request": {"max_line_bytes": int, "id_key": (str, type(None))},
    "encoder": {"is_normalized": bool},
    "counts": dict.fromkeys(("lines", "documents", "rejected", "blank", "truncated", "duplicate_ids", "tokens"), int),
    "versions": {},
    "statistics": {},
}
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


class EmbeddingWriter:
    """Writes one new HDF5 file. Use it as a context manager; `finish` makes the file valid.

    Memory does not depend on the number of rows. Where writing fails, as on a full disk, `append`, `finish` or leaving
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
    ) -> None:
        """Creates the file.

        Args:
            path: Where; an existing file is replaced.
            group: Name of the group that holds the datasets.
            dim: Width of an embedding.
            embedding_dtype: `float32` or `float16`.
            label_shape: Of a document's labels: () makes them (n,), (k,) makes them (n, k); None writes none.
            label_dtype: NumPy name.
            index_keys: Names of the values that each document brings.
            slice_rows: Rows written at a time.
        """
        self._disk = _Disk(path)
        self._file = h5py.File(self._disk, "w", locking=False)
        self._group = self._file.create_group(group)
        self._dim = dim
        self._embedding_dtype = np.dtype(embedding_dtype)
        self._label_shape = label_shape
        self._label_dtype = np.dtype(label_dtype)
        self._index_names = [f"{INDEX}/{key.replace('/', '_')}" for key in index_keys]
        self._slice_rows = slice_rows
        self._n_rows = 0

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
        self, documents: Sequence[Document], embeddings: NDArray[np.float32], n_tokens: NDArray[np.int32]
    ) -> None:
        """Adds rows.

        Args:
            documents: What the rows stand for.
            embeddings: float32 (n_documents, dim), finite.
            n_tokens: int32 (n_documents,).
        """
        if self._n_rows == 0 and documents:
            self._create_datasets(len(documents))
        for start in range(0, len(documents), self._slice_rows):
            rows = slice(start, start + self._slice_rows)
            self._append_slice(documents[rows], embeddings[rows], n_tokens[rows])

    def finish(self, provenance: Provenance) -> None:
        """Writes the provenance; after it the file is valid."""
        if self._n_rows == 0:
            self._create_datasets(0)
        attributes = self._group.attrs
        attributes["format_version"] = FORMAT_VERSION
        for name in Provenance.__dataclass_fields__:
            attributes[name] = json.dumps(dict(getattr(provenance, name)), sort_keys=True)
        self._disk.check()

    def _create_datasets(self, n_first: int) -> None:
        """Creates empty datasets whose chunks are no larger than a small file's content."""
        row_bytes = self._dim * self._embedding_dtype.itemsize
        n_first = max(n_first, MIN_CHUNK_ROWS)
        self._create(EMBEDDINGS, self._embedding_dtype, (self._dim,), min(n_first, CHUNK_BYTES // row_bytes or 1))
        rows = min(n_first, CHUNK_ROWS)
        for name in (DOCUMENT_ID, *self._index_names):
            self._create(name, _UTF8, (), rows)
        self._create(SOURCE_LINE, np.dtype(np.int64), (), rows)
        self._create(SOURCE_OFFSET, np.dtype(np.int64), (), rows)
        self._create(N_TOKENS, np.dtype(np.int32), (), rows)
        self._create(TEXT_HASH, np.dtype(np.uint64), (), rows)
        if self._label_shape is not None:
            self._create(LABELS, self._label_dtype, self._label_shape, rows)

    def _create(self, name: str, dtype: Any, width: tuple[int, ...], chunk_rows: int) -> None:
        shape, maxshape, chunks = (0, *width), (None, *width), (chunk_rows, *width)
        # Whoever reads a chunk whose bytes have changed is told so, by HDF5 itself; strings lie outside their chunks.
        has_checksums = dtype is not _UTF8
        self._group.create_dataset(name, shape, dtype, maxshape=maxshape, chunks=chunks, fletcher32=has_checksums)

    def _append_slice(
        self, documents: Sequence[Document], embeddings: NDArray[np.float32], n_tokens: NDArray[np.int32]
    ) -> None:
        columns: dict[str, Any] = {
            EMBEDDINGS: embeddings.astype(self._embedding_dtype, copy=False),
            DOCUMENT_ID: [document.id for document in documents],
            SOURCE_LINE: [document.line for document in documents],
            SOURCE_OFFSET: [document.offset for document in documents],
            N_TOKENS: n_tokens,
            TEXT_HASH: np.array([hash_text(document.text) for document in documents], np.uint64),
        }
        for i, name in enumerate(self._index_names):
            columns[name] = [document.index[i] for document in documents]
        if self._label_shape is not None:
            labels = np.array([document.labels for document in documents], self._label_dtype)
            columns[LABELS] = labels.reshape(len(documents), *self._label_shape)
        end = self._n_rows + len(documents)
        for name, values in columns.items():
            dataset = self._group[name]
            dataset.resize(end, axis=0)
            dataset[self._n_rows : end] = values
        self._disk.check()
        self._n_rows = end


class _Disk(io.RawIOBase):
    """The file that HDF5 writes to, whose failures reach its user and not HDF5.

    HDF5 drops what it could not write of a dataset that is closed, without an error, and dies of a segmentation fault
    when a file on a full disk is closed (HDF5 2.0; with h5py's own driver that was a worker's death). From the first
    failure on, what it writes is kept in memory: no more than its caches hold, as the writer stops.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = open(path, "w+b", buffering=0)
        self._position = 0
        self._error: OSError | None = None
        self._unwritten: list[tuple[int, bytes]] = []

    def check(self) -> None:
        """Raises what went wrong, if anything did."""
        if self._error is not None:
            raise self._error

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence == os.SEEK_END:
            on_disk = os.fstat(self._file.fileno()).st_size
            offset += max([on_disk, *(start + len(piece) for start, piece in self._unwritten)])
        self._position = offset + (self._position if whence == os.SEEK_CUR else 0)
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fills the whole of it, with zeros where nothing was written."""
        begin, end = self._position, self._position + len(buffer)
        content = bytearray(len(buffer))
        with self._keeping_error():
            on_disk = os.pread(self._file.fileno(), len(buffer), begin)
            content[: len(on_disk)] = on_disk
        for start, piece in self._unwritten:
            first, last = max(start, begin), min(start + len(piece), end)
            if first < last:
                content[first - begin : last - begin] = piece[first - start : last - start]
        buffer[:] = content
        self._position = end
        return len(buffer)

    def write(self, content: memoryview) -> int:  # type: ignore[override]
        left = memoryview(content)
        with self._keeping_error():
            while left and self._error is None:
                n_bytes = os.pwrite(self._file.fileno(), left, self._position)
                self._position += n_bytes
                left = left[n_bytes:]
        if left:
            self._unwritten.append((self._position, bytes(left)))
            self._position += len(left)
        return len(content)

    def truncate(self, size: int | None = None) -> int:
        with self._keeping_error():
            self._file.truncate(size)
        return size or 0

    def close(self) -> None:
        with self._keeping_error():
            self._file.close()
        super().close()

    @contextmanager
    def _keeping_error(self) -> Iterator[None]:
        try:
            with naming(self._path):
                yield
        except OSError as error:
            self._error = self._error or error


class EmbeddingFile:
    """A file of embeddings, open for reading. Use it as a context manager.

    Files of other tools are read too, as long as they hold `<group>/embeddings`; what they lack is
    said by the error of what needs it. Nothing outside the file is read: links are not followed, and
    datasets whose rows lie in other files are refused.

    Attributes:
        path: The file.
        n_rows: Documents.
        dim: Width of an embedding.
        provenance: None where another tool wrote the file.
    """

    def __init__(self, path: Path, group: str) -> None:
        """Opens and checks a file.

        Raises:
            EmbeddingFileError: It is not HDF5, cut short, lacks the group or its embeddings, leads to other
                files, claims to hold more than it can, or its datasets disagree on the number of rows.
        """
        self.path = path
        self._file = _open(path)
        try:
            with self._reading("its structure"):
                self._group = self._find_group(group)
                self._names = self._find_names()
                embeddings = self._group[EMBEDDINGS]
                if embeddings.ndim != 2 or embeddings.dtype.kind != "f" or not embeddings.shape[1]:
                    raise self._error(f"embeddings are {embeddings.dtype} {embeddings.shape}, not float (n, dim)")
                self._check_is_written(self._dataset(EMBEDDINGS))
                self.n_rows, self.dim = map(int, embeddings.shape)
                self.provenance = self._read_provenance()
                for name in self._names:
                    if len(self._group[name]) != self.n_rows:
                        raise self._error(f"{name} has {len(self._group[name])} rows, embeddings {self.n_rows}")
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "EmbeddingFile":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._file.close()

    def identity(self) -> dict[str, Any]:
        """Returns what tells one version of the file from another; ours say it without being read as a whole."""
        if self.provenance is None:
            return file_identity(self.path)
        return {
            "source_sha256": self.provenance.source["sha256"],
            "request": dict(self.provenance.request),
            "rows": self.n_rows,
        }

    def names(self) -> list[str]:
        """Returns the names of the datasets with rows: `embeddings`, `document_id`, `index/<key>`, ..."""
        return list(self._names)

    def find(self, key: str) -> str | None:
        """Returns the name of the dataset that holds a key: itself, or that key of the index."""
        own = set(self._names) - {EMBEDDINGS}
        return next((name for name in (key, f"{INDEX}/{key.replace('/', '_')}") if name in own), None)

    def slices(self, n_rows: int) -> Iterator[slice]:
        """Yields the rows in order, `n_rows` at a time."""
        for start in range(0, self.n_rows, n_rows):
            yield slice(start, min(start + n_rows, self.n_rows))

    def embeddings(self, rows: slice) -> NDArray[np.float32]:
        """Returns float32 (n, dim), whatever the precision in the file."""
        return self.array(EMBEDDINGS, rows).astype(np.float32, copy=False)

    def column(self, name: str, rows: slice) -> list[str] | NDArray[Any]:
        """Returns a dataset's values: strings as a list, others as an array in the precision of the file.

        Raises:
            EmbeddingFileError: A value cannot be read, or is no UTF-8.
        """
        if h5py.check_string_dtype(self._group[name].dtype) is None:
            return self.array(name, rows)
        with self._reading(self._place(name, rows)):
            return list(self._dataset(name).asstr("utf-8")[rows])  # ASCII is UTF-8, and so is much that says ASCII

    def array(self, name: str, rows: slice) -> NDArray[Any]:
        """Returns a numeric dataset's values.

        Raises:
            EmbeddingFileError: The file has no such dataset, or its values cannot be read.
        """
        if name not in self._names:
            raise self._error(f"no dataset {name}, which only files of the embedding pipeline have")
        with self._reading(self._place(name, rows)):
            return np.asarray(self._dataset(name)[rows])

    def check_content(self) -> None:
        """Reads every embedding once.

        Raises:
            EmbeddingFileError: One is not finite, or not of unit length though the encoder normalises, or
                the number of rows is not the one that the file states.
        """
        stated = self.provenance.counts["documents"] if self.provenance else self.n_rows
        if stated != self.n_rows:
            raise self._error(f"it states {stated} documents and holds {self.n_rows} rows")
        normalized = self.provenance is not None and self.provenance.encoder["is_normalized"]
        for rows in self.slices(CHUNK_ROWS):
            lengths = np.linalg.norm(self.embeddings(rows), axis=1)
            wrong = ~np.isfinite(lengths) | (normalized & (np.abs(lengths - 1) > UNIT_LENGTH_TOLERANCE))
            if wrong.any():
                row = int(np.argmax(wrong))
                raise self._error(f"the embedding of row {rows.start + row} has length {lengths[row]}; embed it again")

    def _find_group(self, group: str) -> h5py.Group:
        """Returns the group, by hard links alone: only they cannot lead out of the file."""
        found: h5py.HLObject | None = self._file
        for name in (*PurePosixPath("/", group).parts[1:], EMBEDDINGS):
            parent = found
            if isinstance(parent, h5py.Group):
                self._check_link(parent, name)
                found = parent.get(name)
        if isinstance(parent, h5py.Group) and isinstance(found, h5py.Dataset):
            return parent
        groups = [name for name in self._file if _is_hard(self._file, name) and _holds_embeddings(self._file[name])]
        raise self._error(
            f'no group "{group}" with a dataset "{EMBEDDINGS}"; '
            + (f"set params.hdf5_dataset_name to {' or '.join(groups)}" if groups else "it is not a file of embeddings")
        )

    def _find_names(self) -> list[str]:
        names: list[str] = []
        self._group.id.links.visit(lambda name: names.append(name.decode()))
        for name in names:
            self._check_link(self._group, name)
        datasets = {name: node for name in names if isinstance(node := self._group[name], h5py.Dataset)}
        for name, dataset in datasets.items():
            if dataset.is_virtual or dataset.external:
                raise self._error(f"the rows of {name} lie in other files, which are not read; copy them into this one")
        return [
            name for name, dataset in datasets.items() if dataset.shape
        ]  # a single value says something of the file

    def _check_link(self, group: h5py.Group, name: str) -> None:
        if group.id.links.exists(name.encode()) and not _is_hard(group, name):
            raise self._error(
                f'"{group.name.rstrip("/")}/{name}" is a link, which may lead out of the file and is not followed; '
                "copy what it stands for into the file"
            )

    def _dataset(self, name: str) -> h5py.Dataset:
        """Returns a dataset of which some rows fit in memory."""
        dataset = self._group[name]
        for what, shape, limit in (
            ("row", dataset.shape[1:], MAX_ROW_BYTES),
            ("chunk", dataset.chunks or (), MAX_CHUNK_BYTES),
        ):
            n_bytes = dataset.dtype.itemsize * math.prod(shape)
            if n_bytes > limit:
                raise self._error(
                    f"a {what} of {name} has {n_bytes} bytes, more than {limit}; store it in smaller ones"
                )
        return dataset

    def _check_is_written(self, embeddings: h5py.Dataset) -> None:
        """Refuses rows that are in no chunk of the file, which HDF5 invents, as zeros."""
        stored_bytes = embeddings.id.get_storage_size()
        if embeddings.chunks:
            shape = zip(embeddings.shape, embeddings.chunks, strict=True)
            is_whole = embeddings.id.get_num_chunks() == math.prod(-(-length // chunk) for length, chunk in shape)
        else:
            is_whole = stored_bytes == embeddings.nbytes
        if not is_whole:
            raise self._error(f"not all of its {len(embeddings)} embeddings were written; embed its source again")
        if embeddings.nbytes > FREE_BYTES + MAX_EXPANSION * stored_bytes:
            raise self._error(
                f"{stored_bytes} bytes would unpack to {embeddings.nbytes} bytes of embeddings, more than "
                f"{MAX_EXPANSION} times as many, which embeddings never do; embed its source again"
            )

    def _read_provenance(self) -> Provenance | None:
        attributes = self._group.attrs
        if "format_version" not in attributes:
            return None
        stated = attributes["format_version"]
        stated = int(stated) if isinstance(stated, np.integer) else repr(stated)
        if stated != FORMAT_VERSION:
            raise self._error(
                f"format_version {stated}, but this release reads {FORMAT_VERSION}; use the release that wrote it, or "
                "embed the source again"
            )
        try:
            names = [
                name
                for name in Provenance.__dataclass_fields__
                if name in attributes or name not in OPTIONAL_PROVENANCE
            ]
            made = {name: json.loads(attributes[name]) for name in names}
            for name in names:
                kinds = _PROVENANCE_VALUES[name]
                if not isinstance(made[name], dict):
                    raise TypeError(f"{name} is no object")
                for key, kind in kinds.items():
                    if not isinstance(made[name][key], kind):
                        raise TypeError(f"{name}: {key} is {made[name][key]!r}")
            return Provenance(**made)
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise self._error(f"its provenance is incomplete ({in_one_line(error)}); embed its source again") from error

    def _place(self, name: str, rows: slice) -> str:
        start, stop, _ = rows.indices(self.n_rows)
        return f"{name} in rows {start} to {stop - 1}"

    @contextmanager
    def _reading(self, what: str) -> Iterator[None]:
        """Says what is broken; h5py says it in some ten exceptions: KeyError, RuntimeError, UnicodeDecodeError, ..."""
        try:
            yield
        except EmbeddingFileError:
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno:  # the file system's own word, not HDF5's
                raise
            raise self._error(f"{what} cannot be read ({in_one_line(error)}); embed its source again") from error

    def _error(self, message: str) -> EmbeddingFileError:
        return EmbeddingFileError(f"{self.path}: {message}")


def _is_hard(group: h5py.Group, name: str) -> bool:
    return bool(group.id.links.get_info(name.encode()).type == h5py.h5l.TYPE_HARD)


def _holds_embeddings(node: h5py.HLObject) -> bool:
    if not isinstance(node, h5py.Group) or not node.id.links.exists(EMBEDDINGS.encode()):
        return False
    return _is_hard(node, EMBEDDINGS) and isinstance(node[EMBEDDINGS], h5py.Dataset)


@functools.cache
def library_versions() -> Mapping[str, str]:
    """Returns the versions of what decides a file's content."""
    names = ("mlfilter", "torch", "transformers", "sentence-transformers", "tokenizers", "h5py", "numpy")
    return {"python": platform.python_version(), **{name: _version(name) for name in names}}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "unknown"


def _open(path: Path) -> h5py.File:
    try:
        # Locks fail on many cluster file systems, and a finished file is never changed.
        return h5py.File(path, "r", locking=False)
    except OSError as error:
        if error.errno:  # the file system's own word, not HDF5's
            raise
        raise EmbeddingFileError(
            f"{path} is not an HDF5 file, or is cut short ({error}); embed its source again"
        ) from error
