"""The rows of files of embeddings that have a label."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
    """The n rows with a label.

    Attributes:
        places: Places of the rows.
        labels: float32 (n, n_targets), finite.
        hashes: uint64 (n,), hashes of the texts, or of the ids where a file does not store the former.
        dim: Width of the embeddings.
        encoder: Fingerprint of the encoder; empty where no file states it.
        left_out: Number of rows or labels that are not used, by reason.
        remarks: Warnings.
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
    """Returns the rows of all files that have a label.

    Args:
        files: Files of embeddings of one encoder.
        group: Name of their HDF5 group.
        keys: Keys of the labels among the stored ones; None takes all.
        by_id: Labels by document id; None takes the stored labels.
        scale: Lowest and highest label; None takes all.

    Raises:
        TrainingError: No row has a label, or a file does not store the labels.
        ConfigError: The files were made by different encoders.
        EmbeddingFileError: A file is not a file of embeddings.
    """
    found = _Found(keys, by_id, scale)
    for i, path in enumerate(files):
        with EmbeddingFile(path, group) as file:
            found.add(i, file)
    return found.rows(tuple(files), group)


@dataclass
class _Found:
    """The rows with a label in the files so far."""

    keys: Sequence[str] | None
    by_id: LabelsById | None
    scale: tuple[float, float] | None
    file_of: list[NDArray[np.int32]] = field(default_factory=list)
    row_of: list[NDArray[np.int64]] = field(default_factory=list)
    labels: list[NDArray[np.float32]] = field(default_factory=list)
    hashes: list[NDArray[np.uint64]] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    matched: set[str] = field(default_factory=set)
    without_hash: list[Path] = field(default_factory=list)
    dim: int = 0
    encoder: OneEncoder = field(default_factory=OneEncoder)

    def add(self, number: int, file: EmbeddingFile) -> None:
        if file.has_chunks:
            raise TrainingError(
                f"{file.path} contains several embeddings of a document, and its labels are of documents; embed the "
                "labelled documents without params.chunks, with max_length set to the tokens of a chunk: a head that "
                "is trained on them scores chunks"
            )
        self.encoder.check(file.path, fingerprint(file.provenance))
        if self.dim and self.dim != file.dim:
            raise ConfigError(
                f"{file.path} contains embeddings of width {file.dim}, the files before it of width {self.dim}; set "
                "params.glob_pattern to the files of one encoder"
            )
        self.dim = file.dim
        if TEXT_HASH not in file.names():
            self.without_hash.append(file.path)
        columns = _columns(file, self.keys) if self.by_id is None else []
        for rows in file.slices(CHUNK_ROWS):
            labels = _stored(file, columns, rows) if self.by_id is None else self._joined(self.by_id, file, rows)
            is_used = self._is_used(labels)
            self.labels.append(labels[is_used])
            self.row_of.append(rows.start + np.flatnonzero(is_used))
            self.file_of.append(np.full(int(is_used.sum()), number, np.int32))
            self.hashes.append(_hashes(file, rows)[is_used])

    def rows(self, files: tuple[Path, ...], group: str) -> LabelledRows:
        unmatched = [name for name in self.by_id or () if name not in self.matched]
        if unmatched:
            self.left_out["label_without_document"] = len(unmatched)
        if not sum(map(len, self.row_of)):
            raise TrainingError(self._why_none(unmatched))
        remarks = []
        if unmatched:
            remarks.append(f"{len(unmatched)} labels are of no document here, such as {_examples(unmatched)}")
        if self.without_hash:
            remarks.append(
                f"{self.without_hash[0]} contains no {TEXT_HASH}: its documents are split by their ids, so equal texts "
                "may be both trained on and held out; embed its source again to fix that"
            )
        return LabelledRows(
            RowPlaces(files, group, np.concatenate(self.file_of), np.concatenate(self.row_of)),
            np.concatenate(self.labels),
            np.concatenate(self.hashes),
            self.dim,
            self.encoder.fingerprint,
            dict(self.left_out),
            remarks,
        )

    def _is_used(self, labels: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Returns which rows have valid labels, bool (n,), and counts the others by reason."""
        invalid = {
            "without_label": np.isnan(labels).all(axis=1),
            "not_finite": ~np.isfinite(labels).all(axis=1),
        }
        if self.scale is not None:
            invalid["outside_scale"] = ~((labels >= self.scale[0]) & (labels <= self.scale[1])).all(axis=1)
        is_used = np.ones(len(labels), bool)
        for reason, rows in invalid.items():
            if n := int((is_used & rows).sum()):
                self.left_out[reason] += n
            is_used &= ~rows
        return is_used

    def _joined(self, by_id: LabelsById, file: EmbeddingFile, rows: slice) -> NDArray[np.float32]:
        ids = list(map(str, file.column(id_column(file), rows)))
        width = len(next(iter(by_id.values()), (0.0,)))
        missing = (np.nan,) * width
        self.matched.update(by_id.keys() & ids)
        return np.array([by_id.get(name, missing) for name in ids], np.float32).reshape(len(ids), width)

    def _why_none(self, unmatched: list[str]) -> str:
        counts = ", ".join(f"{n} {reason}" for reason, n in self.left_out.items()) or "the files have no rows"
        if not unmatched:
            return f"no document has a valid label ({counts}); check label_key and scale"
        return (
            f"no label is of a document here ({counts}): there are labels of {_examples(unmatched)}; the ids here are "
            "those of id_key in the embedding job, so set id_key to the same key of the labels"
        )


def _stored(file: EmbeddingFile, columns: list[int], rows: slice) -> NDArray[np.float32]:
    labels = file.array(LABELS, rows).astype(np.float32)
    return labels.reshape(len(labels), -1)[:, columns]


def _columns(file: EmbeddingFile, keys: Sequence[str] | None) -> list[int]:
    """Returns the columns of the stored labels with the given keys."""
    if LABELS not in file.names():
        raise TrainingError(
            f"{file.path} contains no labels; set labels_path of the head, set params.glob_pattern to the files that "
            "contain labels, or embed its source again with save_labels: true"
        )
    asked = file.provenance.request.get("label_keys") if file.provenance else None
    stored = [asked] if isinstance(asked, str) else list(asked or ())
    shape = file.array(LABELS, slice(0, 0)).shape
    n_stored = shape[1] if len(shape) > 1 else 1
    if keys is None:
        return list(range(n_stored))
    if not stored and n_stored == len(keys) == 1:  # a file of another tool does not name its one label
        return [0]
    absent = [key for key in keys if key not in stored]
    if absent:
        known = f"it contains: {', '.join(stored)}" if stored else "it does not name its labels"
        raise TrainingError(f'{file.path} contains no label "{absent[0]}"; {known}')
    return [stored.index(key) for key in keys]


def _hashes(file: EmbeddingFile, rows: slice) -> NDArray[np.uint64]:
    if TEXT_HASH in file.names():
        return file.array(TEXT_HASH, rows).astype(np.uint64)
    return np.array([hash_text(str(name)) for name in file.column(id_column(file), rows)], np.uint64)


def id_column(file: EmbeddingFile) -> str:
    """Returns the name of the dataset that contains the document ids.

    Raises:
        TrainingError: There is none.
    """
    name = file.find(DOCUMENT_ID)
    if name is None:
        raise TrainingError(
            f"{file.path} contains no {DOCUMENT_ID}, which identifies documents; embed its source again"
        )
    return name


def _examples(names: Sequence[str]) -> str:
    return ", ".join(names[:N_EXAMPLES]) + (", ..." if len(names) > N_EXAMPLES else "")
