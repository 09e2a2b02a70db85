"""The rows of files of embeddings that have a label."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mlfilter_core.corpus.documents import hash_text
from mlfilter_core.embedding_store.fingerprint import Fingerprint, OneEncoder, fingerprint
from mlfilter_core.embedding_store.layout import CHUNK_ROWS, DOCUMENT_ID, LABELS, TEXT_HASH
from mlfilter_core.embedding_store.reader import EmbeddingFile
from mlfilter_core.errors import ConfigError, TrainingError
from mlfilter_core.training.row_buffers import RowPlaces

LabelsById = Mapping[str, tuple[float, ...]]

N_EXAMPLES = 3


@dataclass(frozen=True)
class LabelledRows:
    """Rows with a label.

    Attributes:
        places: Where they lie.
        labels: float32 (n, n_targets), finite.
        hashes: uint64 (n,), of the texts; of the ids where a file does not say.
        dim: Width of the embeddings.
        encoder: Fingerprint of their encoder; empty where no file says.
        left_out: How many rows or labels take no part, by reason.
        remarks: What a person should know of these documents, in words.
    """

    places: RowPlaces
    labels: NDArray[np.float32]
    hashes: NDArray[np.uint64]
    dim: int
    encoder: Fingerprint
    left_out: Mapping[str, int]
    remarks: Sequence[str]


def find_labelled_rows(
    files: Sequence[Path],
    group: str,
    keys: Sequence[str] | None,
    by_id: LabelsById | None,
    scale: tuple[float, float] | None,
) -> LabelledRows:
    """Reads the labels of all files.

    Args:
        files: Files of embeddings of one encoder.
        group: Name of their HDF5 group.
        keys: Keys of the labels among those that were stored; None takes all.
        by_id: Labels of documents by their ids; None takes those in the files.
        scale: Lowest and highest label; None takes all.

    Raises:
        TrainingError: No row has a label, or the labels that are wanted were not stored.
        ConfigError: Files are of different encoders.
        EmbeddingFileError: A file is not a file of embeddings.
    """
    found = _Found(group, keys, by_id, scale)
    for path in files:
        with EmbeddingFile(path, group) as file:
            found.add(file)
    return found.rows(tuple(files))


class _Found:
    """Collects the rows of one file after another."""

    def __init__(
        self, group: str, keys: Sequence[str] | None, by_id: LabelsById | None, scale: tuple[float, float] | None
    ) -> None:
        self._group = group
        self._keys = keys
        self._by_id = by_id
        self._scale = scale
        self._n_files = 0
        self._file_of: list[NDArray[np.int32]] = []
        self._row_of: list[NDArray[np.int64]] = []
        self._labels: list[NDArray[np.float32]] = []
        self._hashes: list[NDArray[np.uint64]] = []
        self._left_out: Counter[str] = Counter()
        self._matched: set[str] = set()
        self._without_hash: list[Path] = []
        self._dim = 0
        self._encoder = OneEncoder()

    def add(self, file: EmbeddingFile) -> None:
        self._encoder.check(file.path, fingerprint(file.provenance))
        if self._dim and self._dim != file.dim:
            raise ConfigError(
                f"{file.path} holds embeddings of width {file.dim}, those before {self._dim}; set params.glob_pattern "
                "to the files of one encoder"
            )
        self._dim = file.dim
        columns = None if self._by_id is not None else _columns(file, self._keys)
        if TEXT_HASH not in file.names():
            self._without_hash.append(file.path)
        for rows in file.slices(CHUNK_ROWS):
            labels = self._stored(file, columns, rows) if columns is not None else self._joined(file, rows)
            row_of = rows.start + np.arange(len(labels))
            counted = np.ones(len(labels), bool)
            counted &= self._leave_out(counted & np.isnan(labels).all(axis=1), "without_label")
            counted &= self._leave_out(counted & ~np.isfinite(labels).all(axis=1), "not_finite")
            if self._scale is not None:
                inside = ((labels >= self._scale[0]) & (labels <= self._scale[1])).all(axis=1)
                counted &= self._leave_out(counted & ~inside, "outside_scale")
            self._labels.append(labels[counted])
            self._row_of.append(row_of[counted])
            self._file_of.append(np.full(int(counted.sum()), self._n_files, np.int32))
            self._hashes.append(_hashes(file, rows)[counted])
        self._n_files += 1

    def rows(self, files: tuple[Path, ...]) -> LabelledRows:
        unmatched = [] if self._by_id is None else [name for name in self._by_id if name not in self._matched]
        if unmatched:
            self._left_out["label_without_document"] = len(unmatched)
        if not sum(map(len, self._row_of)):
            raise TrainingError(self._why_none(unmatched))
        places = RowPlaces(files, self._group, np.concatenate(self._file_of), np.concatenate(self._row_of))
        remarks = []
        if unmatched:
            remarks.append(f"{len(unmatched)} labels are of no document here, as of {_examples(unmatched)}")
        if self._without_hash:
            remarks.append(
                f"{self._without_hash[0]} holds no {TEXT_HASH}: its documents are divided by their ids, so that equal "
                "texts may fall on both sides; embed its source again to mend that"
            )
        labels, hashes = np.concatenate(self._labels), np.concatenate(self._hashes)
        return LabelledRows(places, labels, hashes, self._dim, self._encoder.fingerprint, dict(self._left_out), remarks)

    def _leave_out(self, left_out: NDArray[np.bool_], reason: str) -> NDArray[np.bool_]:
        if left_out.any():
            self._left_out[reason] += int(left_out.sum())
        return ~left_out

    def _stored(self, file: EmbeddingFile, columns: list[int], rows: slice) -> NDArray[np.float32]:
        labels = file.array(LABELS, rows).astype(np.float32)
        return labels.reshape(len(labels), -1)[:, columns]

    def _joined(self, file: EmbeddingFile, rows: slice) -> NDArray[np.float32]:
        assert self._by_id is not None
        ids = [as_text(name) for name in file.column(id_place(file), rows)]
        width = len(next(iter(self._by_id.values()), (0.0,)))
        without = (np.nan,) * width
        self._matched.update(name for name in ids if name in self._by_id)
        return np.array([self._by_id.get(name, without) for name in ids], np.float32).reshape(len(ids), width)

    def _why_none(self, unmatched: list[str]) -> str:
        counts = ", ".join(f"{n} {reason}" for reason, n in self._left_out.items()) or "the files have no rows"
        if not unmatched:
            return f"no document has a label that counts ({counts}); check label_key and scale"
        return (
            f"no label is of a document here ({counts}): there are labels of {_examples(unmatched)}; the ids here are "
            "those of id_key in the embedding job, so set id_key to the same key of the labels"
        )


def _columns(file: EmbeddingFile, keys: Sequence[str] | None) -> list[int]:
    """Returns the columns of the stored labels that are wanted."""
    if LABELS not in file.names():
        raise TrainingError(f"{file.path} holds no labels; embed with save_labels: true, or give labels_path")
    asked = file.provenance.request.get("label_keys") if file.provenance else None
    stored = [asked] if isinstance(asked, str) else list(asked or ())
    shape = file.array(LABELS, slice(0, 0)).shape
    n_stored = shape[1] if len(shape) > 1 else 1
    if keys is None:
        return list(range(n_stored))
    if not stored and n_stored == len(keys) == 1:  # the file does not say how its one label is called
        return [0]
    absent = [key for key in keys if key not in stored]
    if absent:
        known = f"there are: {', '.join(stored)}" if stored else "the file does not say how they are called"
        raise TrainingError(f'{file.path} holds no label "{absent[0]}"; {known}')
    return [stored.index(key) for key in keys]


def _hashes(file: EmbeddingFile, rows: slice) -> NDArray[np.uint64]:
    if TEXT_HASH in file.names():
        return file.array(TEXT_HASH, rows).astype(np.uint64)
    ids = file.column(id_place(file), rows)
    return np.array([hash_text(as_text(name)) for name in ids], np.uint64)


def id_place(file: EmbeddingFile) -> str:
    """Returns the name of the dataset that holds the ids.

    Raises:
        TrainingError: There is none.
    """
    place = file.find(DOCUMENT_ID)
    if place is None:
        raise TrainingError(
            f"{file.path} holds no {DOCUMENT_ID}, by which its documents are known; embed its source again"
        )
    return place


def as_text(name: object) -> str:
    """Returns an id as labels name it."""
    return name if isinstance(name, str) else str(name)


def _examples(names: Sequence[str]) -> str:
    return ", ".join(names[:N_EXAMPLES]) + (", ..." if len(names) > N_EXAMPLES else "")
