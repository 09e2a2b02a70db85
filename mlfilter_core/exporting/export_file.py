"""One file of embeddings, with what other jobs say about its documents, to Parquet, or to a NumPy array and Parquet."""

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import parquet

from mlfilter_core.embedding_store.clusters_of_rows import ValuesOf
from mlfilter_core.embedding_store.fingerprint import fingerprint
from mlfilter_core.embedding_store.layout import DOCUMENT_ID, EMBEDDING_SCALE, FIRST_CHUNK
from mlfilter_core.embedding_store.reader import EmbeddingFile
from mlfilter_core.embedding_store.text_beginnings import TextBeginnings
from mlfilter_core.errors import EmbeddingFileError, OutputConflictError
from mlfilter_core.exporting.annotated_scores import AnnotatedScores
from mlfilter_core.exporting.columns import EMBEDDING, NO_ROWS, TEXT_BEGINNING, Column, columns_of, embedding_bytes
from mlfilter_core.exporting.export_request import ExportRequest
from mlfilter_core.exporting.tables import finite_embeddings, schema_of, table_of
from mlfilter_core.files.new_file import open_new
from mlfilter_core.files.publishing import publish
from mlfilter_core.files.task_files import TaskFile
from mlfilter_core.versions import library_versions
from mlfilter_core.work.same_request import differing_fields

METADATA_KEY = b"mlfilter"
# A slice is in memory at once, and is a row group. Readers use a thread for each row group, and take one as a whole.
SLICE_BYTES = 64 << 20  # of embeddings
SLICE_ROWS = 1 << 17  # about as many as other tools put in a row group
SLICE_ROWS_OF_TEXTS = 4096  # strings other than ids may be whole documents
TEXT_CHARACTERS = 200  # of each document: enough to see what it is about
REPLACE = "give --overwrite to replace it, or another --output_directory"


@dataclass(frozen=True)
class ExportReport:
    """The report of one file.

    Attributes:
        file: Name of the file of embeddings.
        status: `exported`; `skipped` where it was finished before; `failed`.
        documents: Number of documents.
        n_bytes: Size of the outputs.
        reason: Reason of a failure.
    """

    file: str
    status: str
    documents: int = 0
    n_bytes: int = 0
    reason: str = ""


def export_file(file: TaskFile, request: ExportRequest, columns: Sequence[Column]) -> ExportReport:
    """Exports one file unless that is finished. The outputs appear complete or not at all.

    Args:
        file: The file of embeddings.
        request: The settings.
        columns: The columns of all files.

    Raises:
        EmbeddingFileError: It is not a file of embeddings, lacks a column, or an embedding is not finite.
        AnnotationError: Its scores are missing, broken, or belong to other embeddings.
        ClusterFileError: Its clusters are, or belong to other centroids.
        DuplicateFileError: Its duplicates are, or belong to another search.
        OutputConflictError: An output of other settings or inputs exists, and `overwrite` is not set.
        SourceError: The annotated file, or the source with the texts, cannot be read; or the source changed.
        OSError: Reading or writing failed.
    """
    with EmbeddingFile(file.path, request.group) as embeddings:
        scores = None
        if request.annotated is not None and any(column.of == "score" for column in columns):
            scores = AnnotatedScores(embeddings, file.stem, request.annotated)
        export = _Export(file, request, embeddings, scores, columns)
        export.check_columns()
        is_finished = export.is_finished()
        if not is_finished:
            export.write()
        n_bytes = sum(path.stat().st_size for path in (request.table(file), request.array(file)) if path is not None)
        return ExportReport(file.relative, "skipped" if is_finished else "exported", embeddings.n_rows, n_bytes)


def settings_of(request: ExportRequest, columns: Sequence[Column]) -> dict[str, Any]:
    """Returns what the content of all outputs depends on, beside their inputs."""
    return request.settings({column.name: str(column.type) for column in columns})


@dataclass(frozen=True)
class _Export:
    """The export of one file; its embeddings are open."""

    file: TaskFile
    request: ExportRequest
    embeddings: EmbeddingFile
    scores: AnnotatedScores | None
    columns: Sequence[Column]

    def check_columns(self) -> None:
        """Checks that the file has the columns of the first one; the types of its scores show as they are read."""
        scores = dict.fromkeys(self.scores.names) if self.scores is not None else None
        own = {
            (column.name, column.of): column
            for column in columns_of(self.embeddings, scores, self.request.columns_of_others)
        }
        for column in self.columns:
            found = own.get((column.name, column.of))
            if found is None:
                place = self.scores.path if self.scores is not None and column.of == "score" else self.file.path
                raise EmbeddingFileError(
                    f"{place}: there is no {column.name}, which the first file has; leave it out with --columns, or "
                    "export the files that have it to another folder, with --glob_pattern"
                )
            if column.of != "score" and found.type != column.type:
                raise EmbeddingFileError(
                    f"{self.file.path}: {column.name} is {found.type}, and {column.type} in the first file; export "
                    "them to different folders, with --glob_pattern"
                )

    def is_finished(self) -> bool:
        """Returns whether the outputs were made from these inputs with these settings.

        Raises:
            OutputConflictError: They were made from others, and are not to be replaced.
        """
        output, array = self.request.table(self.file), self.request.array(self.file)
        if not output.exists():
            return False
        problem = self._difference(_provenance_of(output))
        if problem and not self.request.overwrite:
            raise OutputConflictError(f"{output} {problem}; {REPLACE}")
        return not problem and (array is None or _has_shape(array, (self.embeddings.n_chunks, self.embeddings.dim)))

    def _difference(self, made: Mapping[str, Any] | None) -> str:
        if made is None:
            return "is no export of this release, or is broken"
        if differing := differing_fields(made["settings"], settings_of(self.request, self.columns)):
            return f"was exported with other settings: {differing}"
        if not self.embeddings.is_version(made["embeddings"], read_content=True):
            return f"was exported from another version of {self.file.path}"
        annotated = self.scores.identity["sha256"] if self.scores is not None else None
        if (made["annotated"] or {}).get("sha256") != annotated:
            return "was exported with scores from another version of the annotated file"
        return ""

    def write(self) -> None:
        """Writes the outputs. The table appears last, as it stands for the array, too."""
        output, array = self.request.table(self.file), self.request.array(self.file)
        columns = self._columns_of_table()
        schema = schema_of(columns, self.embeddings.has_chunks)
        schema = schema.with_metadata({METADATA_KEY: json.dumps(self._provenance(), ensure_ascii=False)})
        if self.scores is not None:
            self.scores.open(schema_of([column for column in columns if column.of == "score"], has_chunks=False))
        with ExitStack() as stack:
            joined = self._of_clusters_and_duplicates(columns)
            texts = stack.enter_context(self._texts()) if any(column.of == "text" for column in columns) else None
            if texts is not None:
                joined[TEXT_BEGINNING] = lambda rows: texts.of(np.arange(rows.start, rows.stop))
            sink = stack.enter_context(open_new(stack.enter_context(publish(output))))
            array_sink = None
            if array is not None:
                array_sink = stack.enter_context(open_new(stack.enter_context(publish(array))))
                self._write_header(array_sink)
            writer = stack.enter_context(parquet.ParquetWriter(sink, schema, **_options(schema)))
            for rows in self.embeddings.slices(_slice_rows(self.columns)):
                stored = self._stored(rows)
                if array_sink is not None:
                    array_sink.write(np.ascontiguousarray(stored[EMBEDDING]).data)
                writer.write_table(table_of(rows, self.embeddings, stored, self.scores, joined, columns, schema))
            if texts is not None:
                texts.check_unchanged()
            if array is not None:
                output.unlink(missing_ok=True)  # a table that is replaced must not stand for the new array

    def _of_clusters_and_duplicates(self, columns: Sequence[Column]) -> dict[str, ValuesOf]:
        """Returns functions from rows to values, by the name of the column."""
        joined: dict[str, ValuesOf] = {}
        for of, corpus in (("cluster", self.request.clusters), ("duplicate", self.request.duplicates)):
            names = {column.place: column.name for column in columns if column.of == of}
            if corpus is not None and names:
                found = corpus.values(self.file, self.embeddings, names)
                joined |= {names[place]: values_of for place, values_of in found.items()}
        return joined

    def _texts(self) -> TextBeginnings:
        return TextBeginnings(
            self.embeddings, self.request.source_dir, TEXT_CHARACTERS, f"--columns {TEXT_BEGINNING}: ", "--source-dir"
        )

    def _columns_of_table(self) -> list[Column]:
        if self.request.format == "parquet":
            return list(self.columns)
        columns = [column for column in self.columns if column.name != EMBEDDING]
        if self.embeddings.has_chunks:
            columns.append(Column(FIRST_CHUNK, FIRST_CHUNK, "document", pa.int64()))
        return columns

    def _stored(self, rows: slice) -> dict[str, NDArray[Any]]:
        if not any(column.of == "embedding" for column in self.columns):
            return {}
        vectors, scales = finite_embeddings(rows, self.embeddings)
        return {EMBEDDING: vectors, **({EMBEDDING_SCALE: scales} if scales is not None else {})}

    def _write_header(self, sink: IO[bytes]) -> None:
        vectors, _ = finite_embeddings(NO_ROWS, self.embeddings)
        shape = (self.embeddings.n_chunks, self.embeddings.dim)
        header = {"descr": np.lib.format.dtype_to_descr(vectors.dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(sink, header)

    def _provenance(self) -> dict[str, Any]:
        made = self.embeddings.provenance
        return {
            "settings": settings_of(self.request, self.columns),
            "embeddings": self.embeddings.identity(),
            "annotated": {**self.scores.identity, "heads": dict(self.scores.heads)}
            if self.scores is not None
            else None,
            "source": dict(made.source) if made is not None else None,
            "encoder": dict(fingerprint(made)),
            "versions": library_versions(),
        }


def _slice_rows(columns: Sequence[Column]) -> int:
    """Returns the most embeddings of a slice."""
    has_texts = any(
        column.of == "document" and column.type == pa.string() for column in columns if column.place != DOCUMENT_ID
    )
    return max(1, min(SLICE_BYTES // (embedding_bytes(columns) or 1), SLICE_ROWS_OF_TEXTS if has_texts else SLICE_ROWS))


def _options(schema: pa.Schema) -> dict[str, Any]:
    """Returns how columns are written: embeddings as they are, all others compressed.

    zstd would make float32 embeddings 7 % smaller, with BYTE_STREAM_SPLIT 16 %, at 0.7 times the speed and less.
    """
    others = [_leaf(field.name, field.type) for field in schema if field.name != EMBEDDING]
    return {
        "compression": dict.fromkeys(others, "zstd"),
        "use_dictionary": others,
        "write_statistics": others,
        "write_page_checksum": True,
    }


def _leaf(path: str, of: pa.DataType) -> str:
    """Returns the name that Parquet gives the values of a column, which are in lists or not."""
    return _leaf(f"{path}.list.element", of.value_type) if pa.types.is_nested(of) else path


def _provenance_of(output: Path) -> Mapping[str, Any] | None:
    """Returns how an exported file was made; None where it does not say."""
    try:
        made: dict[str, Any] = json.loads((parquet.read_metadata(output).metadata or {})[METADATA_KEY])
        return made if {"settings", "embeddings", "annotated"} <= made.keys() else None
    except (pa.ArrowException, KeyError, ValueError, AttributeError):
        return None


def _has_shape(array: Path, shape: tuple[int, int]) -> bool:
    try:
        return bool(np.load(array, mmap_mode="r").shape == shape)
    except (FileNotFoundError, ValueError):  # missing, or cut short
        return False
