"""A file of embeddings of this or another tool, read and checked."""

import functools
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from mlfilter_core.corpus.documents import as_string
from mlfilter_core.embedding_store.int8 import dequantize
from mlfilter_core.embedding_store.layout import (
    CHUNK_ROWS,
    EMBEDDING_SCALE,
    EMBEDDINGS,
    FIRST_CHUNK,
    FORMAT_VERSION,
    N_TOKENS,
    OPTIONAL_PROVENANCE,
    Provenance,
    index_name,
)
from mlfilter_core.errors import EmbeddingFileError, in_one_line
from mlfilter_core.files.identity import file_identity, is_same_file

UNIT_LENGTH_TOLERANCE = 5e-3  # float16 keeps three digits
# Limits on what a file may claim to contain. All three are arbitrary, and far above what any encoder or tool writes:
# the widest embeddings take 64 KiB, h5py makes chunks of 1 MiB, and embeddings hardly compress.
MAX_ROW_BYTES = 1 << 20
MAX_CHUNK_BYTES = 1 << 30
MAX_EXPANSION, FREE_BYTES = 1000, 1 << 30
# Provenance fields that readers rely on, and their types.
_PROVENANCE_VALUES: Mapping[str, Mapping[str, Any]] = {
    "source": {"path": str, "folder": str, "bytes": int, "mtime_ns": int, "sha256": str},
    "request": {"max_line_bytes": int, "id_key": (str, type(None))},
    "encoder": {"is_normalized": bool},
    "counts": dict.fromkeys(("lines", "documents", "rejected", "blank", "truncated", "duplicate_ids", "tokens"), int),
    "versions": {},
    "statistics": {},
}


class EmbeddingFile:
    """A file of embeddings, open for reading. Use it as a context manager.

    Reads files of other tools, too, as long as they contain `<group>/embeddings`. Where something is missing, the
    function that needs it raises an error. Nothing outside the file is read: links are not followed, and datasets
    whose rows are in other files are refused.

    Attributes:
        path: The file.
        n_rows: Number of documents.
        n_chunks: Number of embeddings; more than documents where long ones are divided into chunks.
        has_chunks: Whether documents may have several embeddings.
        dim: Width of an embedding.
        provenance: Provenance; None where another tool wrote the file.
    """

    def __init__(self, path: Path, group: str) -> None:
        """Opens and checks a file.

        Raises:
            EmbeddingFileError: It is not HDF5, is truncated, lacks the group or its embeddings, links to other files,
                claims more content than it can have, or its datasets have different numbers of rows.
        """
        self.path = path
        self._file = _open(path)
        try:
            with self._reading("its structure"):
                self._group = self._find_group(group)
                # Looked up once: h5py takes 0.1 ms for each, and runs open each of many small files several times.
                self._datasets = self._find_datasets()
                embeddings = self._group[EMBEDDINGS]
                self._is_int8 = embeddings.dtype == np.int8 and self._has_scale()
                is_number = embeddings.dtype.kind == "f" or self._is_int8
                if embeddings.ndim != 2 or not is_number or not embeddings.shape[1]:
                    raise self._error(
                        f"embeddings are {embeddings.dtype} {embeddings.shape}, not float (n, dim), or int8 with "
                        f"{EMBEDDING_SCALE}"
                    )
                self._check_is_written(self._dataset(EMBEDDINGS))
                self.n_chunks, self.dim = map(int, embeddings.shape)
                self.has_chunks = FIRST_CHUNK in self._datasets
                self.n_rows = self._n_documents() if self.has_chunks else self.n_chunks
                self.provenance = self._read_provenance()
                for name, dataset in self._datasets.items():
                    is_of_chunks = name in (EMBEDDINGS, EMBEDDING_SCALE)
                    like = FIRST_CHUNK if self.has_chunks and not is_of_chunks else EMBEDDINGS
                    n, expected = len(dataset), len(self._datasets[like])
                    if n != expected:
                        raise self._error(f"{name} has {n} rows, {like} {expected}")
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "EmbeddingFile":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._file.close()

    def identity(self) -> dict[str, Any]:
        """Returns what identifies this version of the file. Only files of other tools are read completely for it."""
        if self.provenance is None:
            return file_identity(self.path)
        return {
            "source_sha256": self.provenance.source["sha256"],
            "request": dict(self.provenance.request),
            "rows": self.n_rows,
        }

    def is_version(self, recorded: Mapping[str, Any], read_content: bool) -> bool | None:
        """Returns whether this is the version of the file whose `identity` was recorded.

        Args:
            recorded: The identity.
            read_content: Whether to read a file of another tool whose modification time differs.

        Returns:
            None where only the content decides and `read_content` is false.
        """
        if self.provenance is None:
            return is_same_file(self.path, recorded, read_content) if "mtime_ns" in recorded else False
        return all(recorded.get(name) == value for name, value in self.identity().items())

    def names(self) -> list[str]:
        """Returns the names of the datasets with rows: `embeddings`, `document_id`, `index/<key>`, ..."""
        return list(self._datasets)

    def find(self, key: str) -> str | None:
        """Returns the name of the dataset of a key: the key itself, or its entry in the index; None for neither."""
        own = set(self._datasets) - {EMBEDDINGS, EMBEDDING_SCALE, FIRST_CHUNK}
        return next((name for name in (key, index_name(key)) if name in own), None)

    def slices(self, n_rows: int) -> Iterator[slice]:
        """Yields slices of documents in order, with at most `n_rows` embeddings, or with one document."""
        start = 0
        while start < self.n_rows:
            stop = min(start + n_rows, self.n_rows)
            if self.has_chunks:
                ends = self._chunk_bounds[start + 1 : stop + 1] - self._chunk_bounds[start]
                stop = start + max(1, int(np.searchsorted(ends, n_rows, side="right")))
            yield slice(start, stop)
            start = stop

    def embeddings(self, rows: slice) -> NDArray[np.float32]:
        """Returns float32 (n, dim), whatever the precision in the file: the embeddings of a slice of documents.

        Where the file has chunks, a document has one or several; `chunk_starts` says which.
        """
        stored, scales = self.stored_embeddings(rows)
        return stored.astype(np.float32, copy=False) if scales is None else dequantize(stored, scales)

    def stored_embeddings(self, rows: slice) -> tuple[NDArray[Any], NDArray[np.float32] | None]:
        """Returns what `embeddings` does, in the precision of the file, with the scale of each where that is int8."""
        if self.has_chunks:
            start, stop, _ = rows.indices(self.n_rows)
            bounds = self._chunk_bounds
            rows = slice(int(bounds[start]), int(bounds[max(start, stop)]))
        return self._values(EMBEDDINGS, rows), self._values(EMBEDDING_SCALE, rows) if self._is_int8 else None

    def chunk_starts(self, rows: slice) -> NDArray[np.int64]:
        """Returns int64 (n_documents,), the place of each document's first embedding in `embeddings(rows)`.

        Raises:
            EmbeddingFileError: The file states impossible places.
        """
        start, stop, _ = rows.indices(self.n_rows)
        if not self.has_chunks:
            return np.arange(stop - start, dtype=np.int64)
        starts: NDArray[np.int64] = self._chunk_bounds[start:stop] - self._chunk_bounds[start]
        return starts

    def stored(self, rows: slice) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns the values of all datasets for a slice of documents as they are stored, strings as bytes.

        Returns:
            Values by dataset: those with a row per document, and those with a row per embedding. `first_chunk` counts
            from the first document of the slice.

        Raises:
            EmbeddingFileError: A value cannot be read.
        """
        start, stop, _ = rows.indices(self.n_rows)
        bounds = self._chunk_bounds if self.has_chunks else range(self.n_rows + 1)
        chunks = slice(int(bounds[start]), int(bounds[stop]))
        own = [name for name in self._datasets if name not in (EMBEDDINGS, EMBEDDING_SCALE, FIRST_CHUNK)]
        columns = {name: self._values(name, rows) for name in own}
        if self.has_chunks:
            columns[FIRST_CHUNK] = self.chunk_starts(rows)
        return columns, {
            name: self._values(name, chunks) for name in (EMBEDDINGS, EMBEDDING_SCALE) if name in self._datasets
        }

    def column(self, name: str, rows: slice) -> list[str] | NDArray[Any]:
        """Returns a dataset's values: strings as a list, others as an array in the precision of the file.

        Raises:
            EmbeddingFileError: A value cannot be read, or is not UTF-8.
        """
        if h5py.check_string_dtype(self._datasets[name].dtype) is None:
            return self.array(name, rows)
        with self._reading(self._place(name, rows)):
            return list(
                self._dataset(name).asstr("utf-8")[rows]
            )  # ASCII is UTF-8, and much that is declared as ASCII is UTF-8

    def strings(self, name: str, rows: slice) -> list[str]:
        """Returns a dataset's values as strings, other than strings as JSON: other tools store ids as numbers.

        Raises:
            EmbeddingFileError: A value cannot be read, or is not UTF-8.
        """
        values = self.column(name, rows)
        return values if isinstance(values, list) else [as_string(value) for value in values.tolist()]

    def tokens(self, rows: slice) -> NDArray[np.int64]:
        """Returns the number of tokens of some documents, int64 (n,); 0 where the file does not state them.

        Raises:
            EmbeddingFileError: They cannot be read.
        """
        if N_TOKENS not in self._datasets:
            return np.zeros(len(range(*rows.indices(self.n_rows))), np.int64)
        return self._values(N_TOKENS, rows).astype(np.int64)

    def array(self, name: str, rows: slice) -> NDArray[Any]:
        """Returns a numeric dataset's values.

        Raises:
            EmbeddingFileError: The file has no such dataset, or its values cannot be read.
        """
        if name not in self._datasets:
            raise self._error(f"no dataset {name}, which only files of the embedding pipeline have")
        return self._values(name, rows)

    def check_content(self) -> None:
        """Reads and checks every embedding.

        Raises:
            EmbeddingFileError: One is not finite, or not of unit length although the encoder normalises, or the number
                of rows differs from the one that the file states.
        """
        stated = self.provenance.counts["documents"] if self.provenance else self.n_rows
        if stated != self.n_rows:
            raise self._error(f"it states {stated} documents and has {self.n_rows} rows")
        normalized = self.provenance is not None and self.provenance.encoder["is_normalized"]
        for rows in self.slices(CHUNK_ROWS):
            lengths = np.linalg.norm(self.embeddings(rows), axis=1)
            wrong = ~np.isfinite(lengths) | (normalized & (np.abs(lengths - 1) > UNIT_LENGTH_TOLERANCE))
            if wrong.any():
                place = int(np.argmax(wrong))
                row = rows.start + int(np.searchsorted(self.chunk_starts(rows), place, side="right")) - 1
                raise self._error(f"the embedding of row {row} has length {lengths[place]}; embed it again")

    @functools.cached_property
    def _chunk_bounds(self) -> NDArray[np.int64]:
        """Where the embeddings of each document begin, int64 (n_rows + 1,), ending with their number."""
        starts = self._values(FIRST_CHUNK, slice(0, self.n_rows))
        bounds = np.append(starts.astype(np.int64), self.n_chunks)
        # Numbers above 2**63 - 1 became negative.
        if bounds[0] != 0 or (bounds < 0).any() or (np.diff(bounds) < 1).any():
            raise self._error(f"{FIRST_CHUNK} does not give each document its own embeddings; embed its source again")
        return bounds

    def _values(self, name: str, rows: slice) -> NDArray[Any]:
        with self._reading(self._place(name, rows)):
            return np.asarray(self._dataset(name)[rows])

    def _find_group(self, group: str) -> h5py.Group:
        """Returns the group, following only hard links, which cannot lead out of the file."""
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

    def _find_datasets(self) -> dict[str, h5py.Dataset]:
        """Returns the datasets with rows, by name."""
        names: list[str] = []
        self._group.id.links.visit(lambda name: names.append(name.decode()))
        for name in names:
            self._check_link(self._group, name)
        datasets = {name: node for name in names if isinstance(node := self._group[name], h5py.Dataset)}
        for name, dataset in datasets.items():
            if dataset.is_virtual or dataset.external:
                raise self._error(
                    f"the rows of {name} are in other files, which are not read; copy them into this file"
                )
        return {name: dataset for name, dataset in datasets.items() if dataset.shape}  # a scalar describes the file

    def _n_documents(self) -> int:
        first = self._datasets[FIRST_CHUNK]
        is_of_whole_numbers = first.ndim == 1 and first.dtype.kind in "iu"
        if not is_of_whole_numbers or not min(1, self.n_chunks) <= len(first) <= self.n_chunks:
            raise self._error(
                f"{FIRST_CHUNK} is {first.dtype} {first.shape}, not a whole number for each document, and documents "
                f"have {self.n_chunks} embeddings; embed its source again"
            )
        return len(first)

    def _has_scale(self) -> bool:
        if EMBEDDING_SCALE not in self._datasets:
            return False
        scale = self._datasets[EMBEDDING_SCALE]
        return bool(scale.ndim == 1 and scale.dtype.kind == "f")

    def _check_link(self, group: h5py.Group, name: str) -> None:
        if group.id.links.exists(name.encode()) and not _is_hard(group, name):
            raise self._error(
                f'"{group.name.rstrip("/")}/{name}" is a link, which may lead out of the file and is not followed; '
                "copy its target into the file"
            )

    def _dataset(self, name: str) -> h5py.Dataset:
        """Returns a dataset after checking that some of its rows fit in memory."""
        dataset = self._datasets[name]
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
        """Refuses a dataset with missing chunks, for which HDF5 returns zeros."""
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
                f"{stored_bytes} bytes would expand to {embeddings.nbytes} bytes of embeddings, more than "
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
        start, stop, _ = rows.indices(len(self._datasets[name]))
        return f"{name} in rows {start} to {stop - 1}"

    @contextmanager
    def _reading(self, what: str) -> Iterator[None]:
        """Converts the errors of h5py, which raises KeyError, RuntimeError, UnicodeDecodeError and others."""
        try:
            yield
        except EmbeddingFileError:
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno:  # an error of the file system, not of HDF5
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


def _open(path: Path) -> h5py.File:
    try:
        # Locks fail on many cluster file systems, and a finished file is never changed.
        return h5py.File(path, "r", locking=False)
    except OSError as error:
        if error.errno:  # an error of the file system, not of HDF5
            raise
        raise EmbeddingFileError(
            f"{path} is not an HDF5 file, or is cut short ({error}); embed its source again"
        ) from error
