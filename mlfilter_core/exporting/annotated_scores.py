"""The scores of an annotated file, in step with the embeddings that they were made from."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import json

from mlfilter_core.annotating.annotated_format import SUFFIXES
from mlfilter_core.corpus.lines import DEFAULT_MAX_LINE_BYTES
from mlfilter_core.embedding_store.reader import EmbeddingFile
from mlfilter_core.errors import AnnotationError, in_one_line
from mlfilter_core.files.task_files import TaskFile
from mlfilter_core.filtering.annotated_file import identity_of, lines_of, provenance_of, record_of

_COMPRESSIONS = {".jsonl": None, ".gz": "gzip", ".zst": "zstd"}


class AnnotatedScores:
    """The scores of one file of embeddings, read once from the first document to the last.

    Attributes:
        path: The annotated file.
        names: Fields with scores and labels, in their order.
        identity: Identity of the annotated file, for `is_same_file`.
        heads: Digest of each head, by its name.
    """

    def __init__(self, file: EmbeddingFile, stem: str, folder: Path) -> None:
        """Finds the annotated file and checks that it was made from the embeddings.

        Args:
            file: The embeddings.
            stem: Path of their file below its folder, without its suffix.
            folder: Folder of the annotated files.

        Raises:
            AnnotationError: It is missing, or was not made from these embeddings, or was changed since.
        """
        annotated = _find(stem, folder, file)
        self.path = annotated.path
        made = provenance_of(annotated)
        if made is None or "columns" not in made:
            raise AnnotationError(
                f"{self.path} does not state the embeddings that it was made from, or was changed since it was "
                "annotated; annotate it again, or export without --annotated"
            )
        if not file.is_version(made["embeddings"], read_content=True):
            raise AnnotationError(f"{self.path} was made from another version of {file.path}; annotate it again")
        self.names: Sequence[str] = made["columns"]
        self.identity = identity_of(annotated)
        self.heads: Mapping[str, str] = made["request"]["heads"]
        self._n_rows = file.n_rows
        self._n_read = 0
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._waiting: pa.Table | None = None

    def first(self) -> dict[str, Any]:
        """Returns the scores of the first document by field; None for each where there is no document.

        Raises:
            AnnotationError: The first line is broken or lacks a score.
            SourceError: The file cannot be read.
        """
        for line in lines_of(self.path):
            record = record_of(line, self.path)
            try:
                return {name: record[name] for name in self.names}
            except KeyError as error:
                raise AnnotationError(f"{self.path}:{line.number}: there is no {error}; annotate it again") from error
        return dict.fromkeys(self.names)

    def open(self, schema: pa.Schema) -> None:
        """Begins to read; to be called before `next`.

        Args:
            schema: Fields to read, with their types.

        Raises:
            AnnotationError: The first lines are broken or have values of other types.
            OSError: The file cannot be opened.
        """
        schema = pa.schema([field.with_nullable(True) for field in schema])
        self._waiting = schema.empty_table()
        if self._n_rows:  # an empty file is none for Arrow
            with self._reading():
                stream = pa.input_stream(str(self.path), compression=_COMPRESSIONS[self.path.suffix])
                options = json.ReadOptions(use_threads=False, block_size=DEFAULT_MAX_LINE_BYTES)
                fields = json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
                self._batches = json.open_json(stream, options, fields)

    def next(self, n: int) -> pa.Table:
        """Returns the scores of the next documents.

        Raises:
            AnnotationError: A line is broken, lacks a score or has one of another type; or there are fewer lines than
                rows, or more.
        """
        assert self._waiting is not None
        is_last = self._n_read + n >= self._n_rows
        with self._reading():
            while self._waiting.num_rows < n or is_last:
                batch = next(self._batches, None)
                if batch is None:
                    break
                self._waiting = pa.concat_tables([self._waiting, pa.Table.from_batches([batch])])
        if self._waiting.num_rows < n or (is_last and self._waiting.num_rows > n):
            n_lines = self._n_read + self._waiting.num_rows
            raise AnnotationError(
                f"{self.path} has {n_lines} lines, and its embeddings {self._n_rows} rows; annotate it again"
            )
        values, self._waiting = self._waiting.slice(0, n), self._waiting.slice(n)
        for name, column in zip(values.column_names, values.columns, strict=True):
            if column.null_count:
                row = self._n_read + column.is_null().index(True).as_py()
                raise AnnotationError(f"{self.path}: {name} is missing or null in line {row + 1}; annotate it again")
        self._n_read += n
        return values

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise AnnotationError(
                f"{self.path}: after line {self._n_read}, a line is broken or longer than {DEFAULT_MAX_LINE_BYTES} "
                f"bytes, or a score has another type than in the first file ({in_one_line(error)}); annotate it again"
            ) from error


def _find(stem: str, folder: Path, file: EmbeddingFile) -> TaskFile:
    names = [name for suffix in SUFFIXES.values() if (folder / (name := f"{stem}{suffix}")).exists()]
    if not names:
        raise AnnotationError(
            f"{file.path}: there is no {folder / stem}.jsonl with its scores; annotate it, or export without "
            "--annotated"
        )
    if len(names) > 1:
        raise AnnotationError(f"{file.path}: both {' and '.join(names)} in {folder} have its scores; remove one")
    return TaskFile(names[0], stem, folder.absolute())
