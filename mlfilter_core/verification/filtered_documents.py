"""Compares the documents of filtered and dropped files with the annotated lines and the sources that they come from.

Knows nothing about provenance and digests.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from math import isfinite
from typing import Any

import numpy as np
import orjson

from mlfilter_core.corpus import exact_json
from mlfilter_core.corpus.documents import BadRecordError, as_string, find_value
from mlfilter_core.corpus.lines import Line, OverlongLine
from mlfilter_core.corpus.records import Record, parse_line
from mlfilter_core.corpus.sources import Source
from mlfilter_core.embedding_store.layout import CHUNK_ROWS, N_TOKENS, SOURCE_LINE
from mlfilter_core.embedding_store.reader import EmbeddingFile
from mlfilter_core.errors import AnnotationError
from mlfilter_core.filtering.survey import NO_GROUP
from mlfilter_core.verification.annotated_lines import MAX_LINE_BYTES
from mlfilter_core.verification.discrepancies import Findings
from mlfilter_core.verification.source_values import Pairs, read_exactly

MAX_TOKENS = 2**40  # more are not a number of tokens


@dataclass(frozen=True)
class Scored:
    """An annotated document.

    Attributes:
        number: Its line in the annotated file.
        content: The line.
        record: The line's JSON object.
        group: Value of the key that groups documents; empty without one.
        tokens: Number of tokens; 0 where it is unknown.
    """

    number: int
    content: bytes
    record: Record
    group: str
    tokens: int


def scored_documents(annotated: Source, per: str | None, embeddings: EmbeddingFile | None) -> Iterator[Scored]:
    """Yields the documents of an annotated file.

    Args:
        annotated: The annotated file.
        per: Key that groups documents.
        embeddings: The embeddings of the documents, which may have their groups and tokens; None for those that the
            filter run did not use.

    Raises:
        AnnotationError: A line is no JSON object.
    """
    place = embeddings.find(per) if embeddings and per else None
    groups = _column(embeddings, place) if embeddings and place else None
    tokens = _column(embeddings, N_TOKENS) if embeddings and N_TOKENS in embeddings.names() else None
    for line in annotated.lines(MAX_LINE_BYTES):
        if isinstance(line, Line) and (not line.content or line.content.isspace()):
            continue
        record = _record(line, annotated)
        group = as_string(next(groups, "")) if groups else group_of(record, per)
        n_tokens = int(next(tokens, 0)) if tokens else _tokens(record.get(N_TOKENS))
        yield Scored(line.number, _content(line), record, group, n_tokens)


def source_lines(source: Source, embeddings: EmbeddingFile) -> Iterator[Line | OverlongLine]:
    """Yields the source line of each row."""
    lines = source.lines(MAX_LINE_BYTES)
    for number in map(int, _column(embeddings, SOURCE_LINE)):
        line = next((line for line in lines if line.number >= number), None)
        if line is None or line.number != number:
            raise AnnotationError(f"{source.path} has no line {number}, which was embedded")
        yield line


class WrittenDocuments:
    """The documents of a filtered or a dropped file, compared one after another with those that belong there."""

    def __init__(self, file: Source, findings: Findings, is_parquet: bool, name: str) -> None:
        """Takes the open file.

        Args:
            file: The filtered or the dropped file.
            findings: Collects the problems.
            is_parquet: Whether values may have changed their JSON type.
            name: Name of the file for messages.
        """
        self.n_documents = 0
        self._file = file
        self._lines = file.lines(MAX_LINE_BYTES)
        self._findings = findings
        self._is_parquet = is_parquet
        self._name = name

    def compare(self, scored: Scored, source: Line | OverlongLine | None, columns: Sequence[str]) -> None:
        """Compares the next document; in JSON, to the digit.

        Args:
            scored: The annotated document that it comes from.
            source: Its source line, to which the scores were added; None where it is the annotated line itself.
            columns: Names of the scores.
        """
        line = next(self._lines, None)
        if line is None:
            return  # `check_complete` says so
        self.n_documents += 1
        if source is None and not self._is_parquet and _content(line) == scored.content:
            return
        scores = {name: scored.record.get(name) for name in columns}
        found = _record(line, self._file)
        wanted = scored.record if source is None else {**_record(source, self._file), **scores}
        names = [name for name in {**wanted, **found} if not self._is_same(name, found, wanted)]
        where, origin = f"{self._name}, line {line.number}", f"line {scored.number} of the annotations"
        if names:
            name = names[0]
            values = f'"{name}" is {_shown(found, name)}, {origin} gives {_shown(wanted, name)}'
            self._findings.add("documents", f"{where}: {values}")
        elif not self._is_parquet and not _is_exactly(line, source, scores, scored):
            self._findings.add("documents", f"{where}: digits or keys are not those that {origin} stands for")

    def check_complete(self, n_expected: int) -> None:
        """Checks the number of documents, after the last one."""
        self.n_documents += sum(1 for _ in self._lines)
        if self.n_documents != n_expected:
            counts = f"{self._name} has {self.n_documents:,} documents"
            self._findings.add("number", f"{counts}, and {n_expected:,} belong there")

    def records(self) -> Iterator[tuple[int, Record]]:
        """Yields line and content of each document, instead of comparing them."""
        for line in self._lines:
            self.n_documents += 1
            yield line.number, _record(line, self._file)

    def _is_same(self, name: str, found: Record, wanted: Record) -> bool:
        if not self._is_parquet:
            return name in found and name in wanted and found[name] == wanted[name]
        value, expected = found.get(name), wanted.get(name)
        if isinstance(expected, float) and not isfinite(expected):
            expected = None  # JSON has no such numbers
        return bool(value == expected) or (isinstance(value, str) and _parsed(value) == expected)


def _column(embeddings: EmbeddingFile, name: str) -> Iterator[Any]:
    slices = (embeddings.column(name, rows) for rows in embeddings.slices(CHUNK_ROWS))
    return chain.from_iterable(values.tolist() if isinstance(values, np.ndarray) else values for values in slices)


def group_of(record: Mapping[str, Any], per: str | None) -> str:
    """Returns the group of a document, from its own fields."""
    try:
        value = find_value(record, per) if per is not None else None
    except KeyError:
        return NO_GROUP
    return NO_GROUP if value is None else as_string(value)


def _tokens(value: Any) -> int:
    is_whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    return int(value) if is_whole and 0 <= value <= MAX_TOKENS else 0


def _record(line: Line | OverlongLine, file: Source) -> Record:
    record = parse_line(line.content) if isinstance(line, Line) else None
    if record is None or isinstance(record, BadRecordError):
        raise AnnotationError(f"{file.path}: line {line.number} is no JSON object")
    return record


def _is_exactly(line: Line | OverlongLine, source: Line | OverlongLine | None, scores: Record, scored: Scored) -> bool:
    """Compares the digits of numbers, the order of keys and keys that occur twice, which a parser loses."""
    try:
        if source is None:
            return bool(read_exactly(_content(line)) == read_exactly(scored.content))
        expected = Pairs((*read_exactly(_content(source)), *read_exactly(exact_json.dumps(scores))))
        return bool(read_exactly(_content(line)) == expected)
    except RecursionError:  # orjson reads deeper
        return True


def _content(line: Line | OverlongLine) -> bytes:
    return line.content if isinstance(line, Line) else b""


def _parsed(text: str) -> Any:
    try:
        return exact_json.loads(text.encode())
    except orjson.JSONDecodeError:
        return None


def _shown(record: Record, name: str) -> str:
    return exact_json.dumps(record[name]).decode()[:60] if name in record else "missing"
