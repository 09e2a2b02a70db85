"""Compares duplicates with the documents that they point to: the kept one, and the one that each is similar to.

Knows nothing about counts and written documents.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mlfilter_core.config.deduplication import DUPLICATES_DIR
from mlfilter_core.deduplication.edges import ROUNDING
from mlfilter_core.embedding_store.duplicate_file import (
    COSINE,
    DUPLICATE_OF,
    KEPT_FILE,
    KEPT_ROW,
    NEAR_FILE,
    NEAR_ROW,
    SUFFIX,
    made_from,
)
from mlfilter_core.embedding_store.layout import DOCUMENT_ID, EMBEDDING_SUFFIXES, TEXT_HASH
from mlfilter_core.embedding_store.reader import EmbeddingFile
from mlfilter_core.verification.discrepancies import Findings
from mlfilter_core.verification.document_directions import directions_at
from mlfilter_core.verification.output_kinds import without_suffix

TOLERANCE = 1e-5  # of a cosine, on any device
POINTERS = (DUPLICATE_OF, KEPT_FILE, KEPT_ROW, NEAR_FILE, NEAR_ROW)


@dataclass(frozen=True)
class OwnEmbeddings:
    """The embeddings of a file of duplicates.

    Attributes:
        file: The open file.
        folder: Folder of the embeddings of the corpus.
        group: Name of the HDF5 group.
    """

    file: EmbeddingFile
    folder: Path
    group: str


@dataclass(frozen=True)
class _Pointers:
    """Some duplicates of one file that point to the documents of another one, or of the same.

    Attributes:
        which: Their places among the duplicates that are checked, int64 (n,).
        rows: Rows that they point to, int64 (n,).
    """

    which: NDArray[np.int64]
    rows: NDArray[np.int64]


class DuplicatePairs:
    """Checks duplicates of one file, some at a time. Memory grows with these alone."""

    def __init__(
        self,
        output_dir: Path,
        stem: str,
        threshold: float | Literal["exact"] | None,
        embeddings: OwnEmbeddings | None,
        findings: Findings,
    ) -> None:
        """Takes what the duplicates are compared with.

        Args:
            output_dir: The output folder.
            stem: Name of the file, without suffix.
            threshold: Lowest cosine of duplicates; None where it is unknown.
            embeddings: Its embeddings; None where they are not here, so that cosines are not compared.
            findings: Collects the problems.
        """
        self._output_dir = output_dir
        self._stem = stem
        self._threshold = threshold
        self._embeddings = embeddings
        self._findings = findings

    def check(self, rows: NDArray[np.int64], marks: Any) -> None:
        """Checks some duplicates.

        Args:
            rows: Their rows, ascending, int64 (n,).
            marks: Table of Arrow with a row for each; `POINTERS` are not null.
        """
        if not len(rows):
            return
        stated = marks[COSINE].to_numpy()  # NaN for null
        is_equal = marks[COSINE].is_null().to_numpy()
        self._check_threshold(rows, stated, is_equal)
        own = None if self._embeddings is None else directions_at(self._embeddings.file, rows)
        kept, near = _by_file(marks, KEPT_FILE, KEPT_ROW), _by_file(marks, NEAR_FILE, NEAR_ROW)
        for name in sorted({*kept, *near}):
            with self._findings.collecting():
                none = _Pointers(np.empty(0, np.int64), np.empty(0, np.int64))
                to_kept, to_near = kept.get(name, none), near.get(name, none)
                if self._check_marks(name, rows, marks, to_kept, to_near) and own is not None and len(to_near.rows):
                    self._check_cosines(name, rows, own, to_near, stated, is_equal)

    def _check_threshold(
        self, rows: NDArray[np.int64], stated: NDArray[np.float32], is_equal: NDArray[np.bool_]
    ) -> None:
        if self._threshold is None:
            return
        least = np.inf if self._threshold == "exact" else self._threshold - ROUNDING
        for i in np.flatnonzero(~is_equal & ~(stated >= least)).tolist():
            cosine = f"row {rows[i]} has the {COSINE} {stated[i]:.6g}"
            self._findings.add("threshold", f"{cosine}, which does not reach the threshold {self._threshold}")

    def _check_marks(self, name: str, rows: NDArray[np.int64], marks: Any, kept: _Pointers, near: _Pointers) -> bool:
        """Compares duplicates with the marks of the file that they point to; returns whether it has these rows."""
        import pyarrow.compute as pc

        stem = without_suffix(name, EMBEDDING_SUFFIXES)
        path = self._output_dir / DUPLICATES_DIR / f"{stem}{SUFFIX}"
        first = rows[min(each.which[0] for each in (kept, near) if len(each.which))]
        is_outside = PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts
        if is_outside or not path.exists():
            self._findings.add("file", f'row {first} points to "{name}", of which there is no file of duplicates')
            return False
        asked = np.unique(np.concatenate([kept.rows, near.rows]))
        others = _marks_at(path, asked)
        if others is None:
            self._findings.add("row", f"row {first} points to a row of {name} that does not exist")
            return False
        is_kept = others[KEPT_ROW].is_null().to_numpy()
        places = np.searchsorted(asked, kept.rows)
        for i in np.flatnonzero(~is_kept[places]).tolist():
            message = f"row {rows[kept.which[i]]} is a duplicate of row {kept.rows[i]} of {name}, which is not kept"
            self._findings.add("kept", message)
        ids, stated = others[DOCUMENT_ID].take(places), marks[DUPLICATE_OF].take(kept.which)
        for i in np.flatnonzero(pc.fill_null(pc.not_equal(ids, stated), True).to_numpy()).tolist():
            message = f'row {rows[kept.which[i]]}: {DUPLICATE_OF} is "{stated[i]}", and row {kept.rows[i]} of {name}'
            self._findings.add(DUPLICATE_OF, f'{message} has the id "{ids[i]}"')
        # The group of a document, by the document that is kept of it: of a kept one, itself.
        places = np.searchsorted(asked, near.rows)
        files = pc.fill_null(others[KEPT_FILE], name).take(places)
        group_rows = np.where(is_kept, asked, pc.fill_null(others[KEPT_ROW], 0).to_numpy())[places]
        is_own = pc.equal(files, marks[KEPT_FILE].take(near.which)).to_numpy()
        is_own = is_own & (group_rows == marks[KEPT_ROW].take(near.which).to_numpy())
        if stem == self._stem:
            is_own = is_own & (near.rows != rows[near.which])  # a document does not connect itself
        for i in np.flatnonzero(~is_own).tolist():
            connected = f"row {rows[near.which[i]]} is connected by row {near.rows[i]} of {name}"
            self._findings.add("group", f"{connected}, which is itself or of another group")
        return True

    def _check_cosines(
        self,
        name: str,
        rows: NDArray[np.int64],
        own: NDArray[np.float32],
        near: _Pointers,
        stated: NDArray[np.float32],
        is_equal: NDArray[np.bool_],
    ) -> None:
        assert self._embeddings is not None
        path = self._embeddings.folder / name
        if not path.exists():
            self._findings.add("near", f"row {rows[near.which[0]]} is connected by a row of {path}, which is missing")
            return
        with EmbeddingFile(path, self._embeddings.group) as others:
            if near.rows.max() >= others.n_rows or others.dim != own.shape[1]:
                return  # the check of that file says so
            has_cosine = ~is_equal[near.which]
            which, near_rows = near.which[has_cosine], near.rows[has_cosine]
            asked, places = np.unique(near_rows, return_inverse=True)
            cosines = np.einsum("ij,ij->i", own[which], directions_at(others, asked)[places])
            for i in np.flatnonzero(~(np.abs(cosines - stated[which]) <= TOLERANCE)).tolist():
                pair = f"row {rows[which[i]]} and row {near_rows[i]} of {name}"
                values = f"have the cosine {cosines[i]:.6f}, and {COSINE} is {stated[which[i]]:.6f}"
                self._findings.add(COSINE, f"{pair} {values}")
            if not has_cosine.all():
                self._check_hashes(name, rows, others, near.which[~has_cosine], near.rows[~has_cosine])

    def _check_hashes(
        self,
        name: str,
        rows: NDArray[np.int64],
        others: EmbeddingFile,
        which: NDArray[np.int64],
        near_rows: NDArray[np.int64],
    ) -> None:
        assert self._embeddings is not None
        files = (self._embeddings.file, others)
        for file in files:
            if TEXT_HASH not in file.names():
                self._findings.add("texts", f"row {rows[which[0]]} has no {COSINE}, and {file.path} no {TEXT_HASH}")
                return
        own, other = (file.array(TEXT_HASH, slice(None)) for file in files)
        for i in np.flatnonzero(own[rows[which]] != other[near_rows]).tolist():
            pair = f"row {rows[which[i]]} has no {COSINE}"
            self._findings.add("texts", f"{pair}, and another {TEXT_HASH} than row {near_rows[i]} of {name}")


def _by_file(marks: Any, file_column: str, row_column: str) -> dict[str, _Pointers]:
    """Returns the pointers to each file, by its name."""
    encoded = marks[file_column].combine_chunks().dictionary_encode()
    files, rows = encoded.indices.to_numpy(), marks[row_column].to_numpy()
    order = np.argsort(files, kind="stable")
    bounds = np.searchsorted(files[order], np.arange(len(encoded.dictionary) + 1))
    names: Sequence[str] = encoded.dictionary.to_pylist()
    each = (order[bounds[i] : bounds[i + 1]] for i in range(len(names)))
    return {name: _Pointers(which, rows[which]) for name, which in zip(names, each, strict=True)}


def _marks_at(path: Path, rows: NDArray[np.int64]) -> Any:
    """Returns a table of the ids and kept documents of some rows, ascending; None where a row does not exist.

    Raises:
        DuplicateFileError: It is not a file of duplicates.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    made_from(path)  # says what is wrong with it
    with pq.ParquetFile(path) as file:
        sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        bounds = np.cumsum([0, *sizes])
        if rows[0] < 0 or rows[-1] >= bounds[-1]:
            return None
        columns = [name for name in (DOCUMENT_ID, KEPT_FILE, KEPT_ROW) if name in file.schema_arrow.names]
        starts = np.searchsorted(rows, bounds)
        parts = [
            file.read_row_group(i, columns).take(rows[starts[i] : starts[i + 1]] - bounds[i])
            for i in np.flatnonzero(np.diff(starts)).tolist()
        ]
    found = pa.concat_tables(parts).combine_chunks()
    return found if DOCUMENT_ID in columns else found.append_column(DOCUMENT_ID, [[f"row {row}" for row in rows]])
