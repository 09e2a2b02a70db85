"""The fields of an annotated file beside the scores: values of the HDF5 file, of the source documents or of clusters.

Knows nothing about scores except their names.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import orjson

from mlfilter_core.corpus.documents import copied_value
from mlfilter_core.corpus.json_lines import Members, members
from mlfilter_core.corpus.source_text import SourceRecord, inside
from mlfilter_core.embedding_store.clusters_of_rows import ValuesOf
from mlfilter_core.embedding_store.layout import DOCUMENT_ID, SOURCE_OFFSET
from mlfilter_core.embedding_store.reader import EmbeddingFile
from mlfilter_core.embedding_store.source_documents import WHOLE_DOCUMENT, SourceDocuments, clusters_advice
from mlfilter_core.errors import AnnotationError, ClusterFileError, ConfigError, FileError
from mlfilter_core.files.task_files import TaskFile, evenly_spaced

# Rows and bytes of documents in memory at a time: some texts are a thousand times longer than most. Each call of h5py
# takes as long as a hundred rows.
READ_ROWS_OF_IDS, READ_ROWS = 1024, 256
READ_BYTES = 1 << 20
N_CHECKED_FILES, N_CHECKED_ROWS = 4, 256  # before a run; a wrong key shows in the first files


class OutputValues:
    """Looks the output keys of one file up. Use it as a context manager.

    Attributes:
        missing_values: Number of documents that lack a key, by key; the value is written as null.
    """

    def __init__(
        self,
        file: EmbeddingFile,
        output_keys: Sequence[str],
        columns: Sequence[str],
        source_dir: Path | None,
        clusters: Mapping[str, ValuesOf] = MappingProxyType({}),
    ) -> None:
        """Looks up the place of each key; opens the source where it is needed.

        Args:
            file: Open file of embeddings; must stay open.
            output_keys: Names in the HDF5 file, otherwise keys of the source document; `*` is all of it.
            columns: Names of the scores, which no output key may take.
            source_dir: Folder of the sources; None takes the folder that the file names.
            clusters: Functions from rows to values, for the output keys that come from the clusters.

        Raises:
            AnnotationError: The source is needed, but the file does not name it; or a key of the clusters is also one
                of the file.
            SourceError: The source is needed, but missing or changed.
        """
        self.missing_values: dict[str, int] = {}
        self._file = file
        self._columns = columns
        self._clusters = clusters
        self._places = {key: _find(file, key) for key in output_keys if key not in columns}
        for key in clusters:
            if self._places[key] is not None:
                raise self._clash_with_cluster(key)
        joined = joined_keys(file, output_keys, (*columns, *clusters))
        self._source = SourceDocuments(file, source_dir, joined) if joined else None
        self._has_whole_documents = WHOLE_DOCUMENT in joined
        self._document_keys: list[str] = []

    def __enter__(self) -> "OutputValues":
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._source is not None:
            self._source.__exit__(*exc_info)

    def members(self, rows: slice) -> Iterator[tuple[int, list[Members]]]:
        """Yields some of the rows at a time: their number, and the output keys of each in order, as JSON.

        Args:
            rows: Rows that follow those of the previous call.

        Raises:
            AnnotationError: A stored number is NaN or infinite, a value cannot be written as JSON, or a document has
                the name of a score as a key.
            SourceError: The source changed.
        """
        try:
            places = {place for key, place in self._places.items() if key not in self._clusters}
            n = READ_ROWS_OF_IDS if places <= {DOCUMENT_ID} else READ_ROWS
            for start in range(rows.start, rows.stop, n):
                yield from self._some_members(slice(start, min(start + n, rows.stop)))
        except orjson.JSONEncodeError as error:  # such as a complex number that another tool stored
            raise AnnotationError(
                f"{self._file.path}: rows {rows.start} to {rows.stop - 1}: a value cannot be written as JSON ({error});"
                " leave its key out of params.output_keys"
            ) from error

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

    def _some_members(self, rows: slice) -> Iterator[tuple[int, list[Members]]]:
        stored = {key: self._stored(place, rows) for key, place in self._places.items() if place is not None}
        stored |= {key: values_of(rows) for key, values_of in self._clusters.items()}
        if self._source is None:
            yield rows.stop - rows.start, [members(key, stored[key]) for key in self._places]
            return
        n_done = 0
        for documents in _some_at_a_time(self._source.documents(self._file.array(SOURCE_OFFSET, rows))):
            own = slice(n_done, n_done + len(documents))
            n_done = own.stop
            yield len(documents), self._joined_members(documents, {key: stored[key][own] for key in stored})

    def _joined_members(self, documents: Sequence[SourceRecord], stored: Mapping[str, Any]) -> list[Members]:
        """Returns the output keys of some documents, given the values of those that are not in the source."""
        joined: dict[str, list[Any]] = {key: [] for key in self._places if key not in stored and key != WHOLE_DOCUMENT}
        for document in documents:
            if self._has_whole_documents:
                self._check_no_clash(document)
            for key, values in joined.items():
                is_own = self._has_whole_documents and key in document
                values.append(None if is_own else self._joined(document, key))
        of_keys: dict[str, Any] = {**stored, **joined}
        if not self._has_whole_documents:
            return [members(key, of_keys[key]) for key in self._places]
        return [
            _whole(documents) if key == WHOLE_DOCUMENT else _unless_own(key, of_keys[key], documents)
            for key in self._places
        ]

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
        if own := [key for key in self._clusters if key in document]:
            raise self._clash_with_cluster(own[0])

    def _clash_with_cluster(self, key: str) -> AnnotationError:
        return AnnotationError(
            f'{self._file.path}: the documents already have a key "{key}"; leave it, or "*", out of '
            "params.output_keys, or remove params.clusters_directory"
        )


def _some_at_a_time(documents: Iterator[SourceRecord]) -> Iterator[list[SourceRecord]]:
    """Yields lists of documents of about `READ_BYTES`, or of one document."""
    some: list[SourceRecord] = []
    n_bytes = 0
    for document in documents:
        some.append(document)
        n_bytes += len(document.text)
        if n_bytes >= READ_BYTES:
            yield some
            some, n_bytes = [], 0
    if some:
        yield some


def _whole(documents: Sequence[SourceRecord]) -> Members:
    """Returns all members of each document."""
    texts = (inside(document.text) for document in documents)
    return Members(b"", [text + b"," if text else b"" for text in texts], b"")


def _unless_own(key: str, values: Sequence[Any], documents: Sequence[SourceRecord]) -> Members:
    """Returns a member for each document that does not have the key itself, whose own value counts."""
    is_own = [key in document for document in documents]
    wanted = members(key, [None if own else value for own, value in zip(is_own, values, strict=True)])
    texts = zip(is_own, wanted.texts, strict=True)
    return Members(b"", [b"" if own else wanted.before + text + wanted.after for own, text in texts], b"")


def check_output_keys(
    files: Sequence[TaskFile],
    group: str,
    output_keys: Sequence[str],
    columns: Sequence[str],
    source_dir: Path | None,
    clusters_of: Callable[[TaskFile, EmbeddingFile], Mapping[str, ValuesOf]] = lambda *_: {},
) -> None:
    """Looks for the output keys in a few files and in the first documents of their sources, before a run.

    Args:
        files: Files of embeddings. A broken file is skipped; its task reports it.
        group: Name of their HDF5 group.
        output_keys: As in `OutputValues`.
        columns: Names of the scores.
        source_dir: Folder of the sources.
        clusters_of: Returns the `clusters` of a file for `OutputValues`.

    Raises:
        ConfigError: A key is in none of them; names the existing keys. Or none of the files has clusters.
    """
    absent, known = set(output_keys), list[str]()
    n_documents = 0
    no_clusters: ClusterFileError | None = None
    for embeddings in evenly_spaced(files, N_CHECKED_FILES):
        try:
            with (
                EmbeddingFile(embeddings.path, group) as file,
                OutputValues(file, output_keys, columns, source_dir, clusters_of(embeddings, file)) as values,
            ):
                n_read = min(N_CHECKED_ROWS, file.n_rows)
                for _ in values.members(slice(0, n_read)):
                    pass
                absent &= {key for key, n_missing in values.missing_values.items() if n_missing == n_read}
                n_documents += n_read
                known = known or values.known_keys()
        except ClusterFileError as error:
            no_clusters = error
        except (FileError, OSError):
            continue
    if n_documents and absent:
        raise ConfigError(
            f"params.output_keys: {' and '.join(map(repr, sorted(absent)))} is neither in the files of embeddings nor "
            f"in any of {n_documents} documents of their sources; there are: {', '.join(known)}"
            f"{clusters_advice(absent)}"
        )
    if not n_documents and no_clusters is not None:
        raise ConfigError(str(no_clusters)) from no_clusters


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
