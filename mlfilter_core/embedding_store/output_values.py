"""The fields of an annotated file beside the scores: values of the HDF5 file or of the source documents.

Knows nothing about scores except their names.
"""

from collections.abc import Iterator, Sequence
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np

from mlfilter_core.corpus.documents import copied_value
from mlfilter_core.corpus.source_text import Parts, SourceRecord
from mlfilter_core.embedding_store.layout import DOCUMENT_ID, SOURCE_OFFSET
from mlfilter_core.embedding_store.reader import EmbeddingFile
from mlfilter_core.embedding_store.source_documents import WHOLE_DOCUMENT, SourceDocuments
from mlfilter_core.errors import AnnotationError, ConfigError, FileError
from mlfilter_core.files.task_files import TaskFile, evenly_spaced

# Rows in memory at a time: texts may be stored, and some are a thousand times longer than most.
READ_ROWS = 256
NO_DOCUMENT = SourceRecord({}, b"{}")
N_CHECKED_FILES = 4  # before a run; a wrong key shows in the first files


class OutputValues:
    """Looks the output keys of one file up. Use it as a context manager.

    Attributes:
        missing_values: Number of documents that lack a key, by key; the value is written as null.
    """

    def __init__(
        self, file: EmbeddingFile, output_keys: Sequence[str], columns: Sequence[str], source_dir: Path | None
    ) -> None:
        """Looks up the place of each key; opens the source where it is needed.

        Args:
            file: Open file of embeddings; must stay open.
            output_keys: Names in the HDF5 file, otherwise keys of the source document; `*` is all of it.
            columns: Names of the scores, which no output key may take.
            source_dir: Folder of the sources; None takes the folder that the file names.

        Raises:
            AnnotationError: The source is needed, but the file does not name it.
            SourceError: The source is needed, but missing or changed.
        """
        self.missing_values: dict[str, int] = {}
        self._file = file
        self._columns = columns
        self._places = {key: _find(file, key) for key in output_keys if key not in columns}
        joined = joined_keys(file, output_keys, columns)
        self._source = SourceDocuments(file, source_dir, joined) if joined else None
        self._has_whole_documents = WHOLE_DOCUMENT in joined
        self._document_keys: list[str] = []

    def __enter__(self) -> "OutputValues":
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._source is not None:
            self._source.__exit__(*exc_info)

    def records(self, rows: slice) -> Iterator[Parts]:
        """Yields one record per row, in parts, with the output keys in order; the last part has values.

        Args:
            rows: Rows that follow those of the previous call.

        Raises:
            AnnotationError: A stored number is NaN or infinite, or a document has the name of a score as a key.
            SourceError: The source changed.
        """
        for start in range(rows.start, rows.stop, READ_ROWS):
            part = slice(start, min(start + READ_ROWS, rows.stop))
            stored = {key: self._stored(place, part) for key, place in self._places.items() if place}
            documents: Iterator[SourceRecord] = repeat(NO_DOCUMENT, part.stop - part.start)
            if self._source is not None:
                documents = self._source.documents(self._file.array(SOURCE_OFFSET, part))
            for i, document in enumerate(documents):
                yield self._record(document, i, stored)

    def check_complete(self) -> None:
        """Checks, after the last row, that the source is unchanged and each key was found.

        Raises:
            SourceError: The source is not the one that was embedded.
            AnnotationError: No document has one of the keys.
        """
        if self._source is None:
            return
        self.check_unchanged()
        for key, n_missing in self.missing_values.items():
            if n_missing == self._file.n_rows:
                raise AnnotationError(
                    f'params.output_keys: "{key}" is neither in {self._file.path} nor in any document of '
                    f"{self._source.path}; there are: {', '.join(self.known_keys())}"
                )

    def check_unchanged(self) -> None:
        """Checks, after the last row, that the source is unchanged.

        Raises:
            SourceError: The source is not the one that was embedded.
        """
        if self._source is not None:
            self._source.check_unchanged()

    @property
    def source_version(self) -> list[int] | None:
        """Size and modification time of the source, in bytes and ns, as it was opened; None where it is not read."""
        return None if self._source is None else self._source.version

    def known_keys(self) -> list[str]:
        """Returns the names in the HDF5 file, and the keys of the source or of a document that lacked an output key."""
        return [*self._file.names(), *self._document_keys]

    def _stored(self, place: str, rows: slice) -> Any:
        values = self._file.column(place, rows)
        if isinstance(values, np.ndarray) and values.dtype.kind == "f" and not np.isfinite(values).all():
            row = rows.start + int(np.argwhere(~np.isfinite(values))[0][0])
            raise AnnotationError(
                f"{self._file.path}: row {row}: {place} is not finite, which JSON cannot express; leave it out of "
                "params.output_keys"
            )
        return values

    def _record(self, document: SourceRecord, i: int, stored: dict[str, Any]) -> Parts:
        values: dict[str, Any] = {}
        parts: Parts = [values]
        for key, place in self._places.items():
            if key == WHOLE_DOCUMENT:
                self._check_no_clash(document)
                values = {}
                parts += [document.text, values]
            elif not (self._has_whole_documents and key in document):  # its own value counts
                values[key] = stored[key][i] if place is not None else self._joined(document, key)
        return parts

    def _joined(self, document: SourceRecord, key: str) -> Any:
        try:
            return copied_value(document, key)
        except KeyError:
            self._document_keys = list((self._source and self._source.keys) or document)
            self.missing_values[key] = self.missing_values.get(key, 0) + 1
            return None

    def _check_no_clash(self, document: SourceRecord) -> None:
        clash = [column for column in self._columns if column in document]
        if clash:
            raise AnnotationError(
                f'{self._file.path}: the source documents already have a key "{clash[0]}"; set another '
                "params.score_prefix"
            )


def check_output_keys(
    files: Sequence[TaskFile], group: str, output_keys: Sequence[str], columns: Sequence[str], source_dir: Path | None
) -> None:
    """Looks for the output keys in a few files and in the first documents of their sources, before a run.

    Args:
        files: Files of embeddings. A broken file is skipped; its task reports it.
        group: Name of their HDF5 group.
        output_keys: As in `OutputValues`.
        columns: Names of the scores.
        source_dir: Folder of the sources.

    Raises:
        ConfigError: A key is in none of them; names the existing keys.
    """
    absent, known = set(output_keys), list[str]()
    n_documents = 0
    for embeddings in evenly_spaced(files, N_CHECKED_FILES):
        try:
            with (
                EmbeddingFile(embeddings.path, group) as file,
                OutputValues(file, output_keys, columns, source_dir) as values,
            ):
                rows = slice(0, min(READ_ROWS, file.n_rows))
                n_read = sum(1 for _ in values.records(rows))
                absent &= {key for key, n_missing in values.missing_values.items() if n_missing == n_read}
                n_documents += n_read
                known = known or values.known_keys()
        except (FileError, OSError):
            continue
    if n_documents and absent:
        raise ConfigError(
            f"params.output_keys: {' and '.join(map(repr, sorted(absent)))} is neither in the files of embeddings nor "
            f"in any of {n_documents} documents of their sources; there are: {', '.join(known)}"
        )


def joined_keys(file: EmbeddingFile, output_keys: Sequence[str], columns: Sequence[str]) -> list[str]:
    """Returns the output keys that are neither in a file of embeddings nor among the scores, but in the source."""
    return [key for key in output_keys if key not in columns and _find(file, key) is None]


def _find(file: EmbeddingFile, key: str) -> str | None:
    """Returns the dataset of an output key, or None for the source document."""
    if key == WHOLE_DOCUMENT:
        return None
    name = file.find(key)
    if name is None and key == "doc_id":  # name of the document's id in the predecessor
        own_id = file.provenance.request["id_key"] if file.provenance else None
        return file.find(DOCUMENT_ID) if own_id in (None, key) else None
    return name
