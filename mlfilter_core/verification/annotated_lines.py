"""The lines of an annotated file, compared with its request.

Knows nothing about embeddings but their ids, and nothing about sources but their records.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

import orjson

from mlfilter_core.corpus import exact_json
from mlfilter_core.corpus.lines import Line, OverlongLine, SourceReader
from mlfilter_core.embedding_store.layout import DISTANCE, DOCUMENT_ID
from mlfilter_core.embedding_store.source_documents import WHOLE_DOCUMENT
from mlfilter_core.errors import AnnotationError, SourceError
from mlfilter_core.heads.chunk_scores import CHUNKS_SUFFIX
from mlfilter_core.heads.scores import LABEL_PREFIX
from mlfilter_core.verification.discrepancies import Findings
from mlfilter_core.verification.source_values import read_exactly, wrong_copies

# A line may contain a whole document, and JSON may need six bytes for one. Arbitrary: 16 of the longest documents.
MAX_LINE_BYTES = 1 << 30
AGAIN = "annotate it again"
ROUNDING = 1e-4  # of a distance from the centre of a cluster, where it was clustered again on another device


@dataclass(frozen=True, slots=True)
class ExpectedLine:
    """The document of a line.

    Attributes:
        id: Its id, as UTF-8.
        record: Its line in the source; None where there is none, or none is compared.
        clusters: Its output keys of clusters; empty where none are compared.
    """

    id: bytes
    record: bytes | None
    clusters: Mapping[str, Any]


def check_annotated_lines(
    reader: SourceReader,
    made: Mapping[str, Any],
    expected: Iterator[ExpectedLine] | None,
    copied: Sequence[str],
    findings: Findings,
) -> int:
    """Checks that every line is an object with every score, every key and the expected id.

    Args:
        reader: The file; exhausted afterwards.
        made: Its provenance.
        expected: What each line must contain, in order. None compares neither ids nor copied values.
        copied: The output keys whose values come from the source.
        findings: Collects the problems.

    Returns:
        The number of lines.
    """
    keys: list[str] = made["request"]["output_keys"]
    lists = [column for column in made["columns"] if _is_of_chunks(column, made)]
    columns = [column for column in made["columns"] if not column.startswith(LABEL_PREFIX) and column not in lists]
    labels = [column for column in made["columns"] if column.startswith(LABEL_PREFIX)]
    expected_keys = [key for key in keys if key != WHOLE_DOCUMENT]
    has_ids = has_stored_ids(keys)
    for line in _lines(reader):
        document = next(expected, None) if expected is not None else None
        record = _record(line)
        if record is None:
            findings.add("json", f"line {line.number} is no JSON object")
            continue
        for column in columns:
            score = record.get(column)
            if type(score) is not float or not isfinite(score):
                _check_score(record, column, line.number, findings)
        for column in lists:
            _check_scores_of_chunks(record, column, line.number, findings)
        for key in (*expected_keys, *labels):
            if key not in record:
                findings.add(key, f'line {line.number} has no "{key}"')
        if has_ids and document is not None:
            _check_id(record, document.id, line.number, findings)
        if document is not None:
            _check_clusters(record, document.clusters, line.number, findings)
        if copied and isinstance(line, Line):
            _check_copies(line, copied, document, findings)
    return reader.n_lines


def has_stored_ids(output_keys: list[str]) -> bool:
    """Returns whether `document_id` is the stored id: a whole document after it would replace it by its own."""
    if DOCUMENT_ID not in output_keys:
        return False
    return WHOLE_DOCUMENT not in output_keys[output_keys.index(DOCUMENT_ID) :]


def _lines(reader: SourceReader) -> Iterator[Line | OverlongLine]:
    try:
        yield from reader.lines(MAX_LINE_BYTES)
    except SourceError as error:
        where = f"{reader.path}: line {reader.n_lines + 1}"
        raise AnnotationError(f"{where}: the compressed stream breaks off; {AGAIN}") from error


def _record(line: Line | OverlongLine) -> dict[str, Any] | None:
    if isinstance(line, OverlongLine):
        return None
    try:
        record = exact_json.loads(line.content)
    except orjson.JSONDecodeError:
        return None
    return record if isinstance(record, dict) else None


def _check_score(record: dict[str, Any], column: str, number: int, findings: Findings) -> None:
    score = record.get(column)
    if column not in record:
        findings.add(column, f"line {number} has no {column}")
    elif isinstance(score, bool) or not isinstance(score, int):
        findings.add(column, f"line {number}: {column} is {_json(score)}, not a finite number")


def _is_of_chunks(column: str, made: Mapping[str, Any]) -> bool:
    """Returns whether a column has lists: a head may have a name that ends like one."""
    name = column.removesuffix(CHUNKS_SUFFIX)
    return name != column and column in made["request"]["output_keys"] and name in made["columns"]


def _check_scores_of_chunks(record: dict[str, Any], column: str, number: int, findings: Findings) -> None:
    scores = record.get(column)
    if column not in record:
        findings.add(column, f"line {number} has no {column}")
    elif not isinstance(scores, list) or not scores or not all(type(score) is float for score in scores):
        findings.add(column, f"line {number}: {column} is {_json(scores)}, not a list of finite numbers")


def _check_id(record: dict[str, Any], document_id: bytes, number: int, findings: Findings) -> None:
    found = record.get(DOCUMENT_ID)
    if not isinstance(found, str) or found.encode() != document_id:
        expected = _json(document_id.decode(errors="replace"))
        findings.add("ids", f"line {number}: {DOCUMENT_ID} is {_json(found)}, row {number - 1} has {expected}")


def _check_clusters(record: dict[str, Any], clusters: Mapping[str, Any], number: int, findings: Findings) -> None:
    for key, expected in clusters.items():
        found = record.get(key)
        is_same = (
            isinstance(found, float) and abs(found - expected) <= ROUNDING
            if key == DISTANCE
            else type(found) is type(expected) and found == expected
        )
        if not is_same:
            findings.add(key, f"line {number}: {key} is {_json(found)}, and {_json(expected)} in the file of clusters")


def _check_copies(line: Line, keys: Sequence[str], document: ExpectedLine | None, findings: Findings) -> None:
    if document is None or document.record is None:
        findings.add("copies", f"line {line.number} belongs to no document of the source")
        return
    try:
        wrong = wrong_copies(read_exactly(line.content), read_exactly(document.record), keys)
    except RecursionError:  # orjson reads deeper
        return
    for key in wrong:
        findings.add(f"copy of {key}", f'line {line.number}: the value of "{key}" is not that of the source')


def _json(value: Any) -> str:
    return exact_json.dumps(value).decode()[:60]
