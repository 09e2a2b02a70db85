"""One annotated file to its survey."""

import logging
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np

from mlfilter_core.config.filtering import SCORE_PREFIX
from mlfilter_core.corpus.documents import as_string, find_value, string_at
from mlfilter_core.corpus.records import Record
from mlfilter_core.embedding_store.layout import DOCUMENT_ID, N_TOKENS
from mlfilter_core.embedding_store.reader import EmbeddingFile
from mlfilter_core.errors import AnnotationError
from mlfilter_core.files.task_files import TaskFile
from mlfilter_core.filtering.annotated_file import (
    embeddings_of,
    identity_of,
    lines_of,
    provenance_of,
    record_of,
    score_field,
)
from mlfilter_core.filtering.survey import (
    MAX_GROUPS,
    NO_GROUP,
    UNKNOWN,
    Survey,
    SurveyReport,
    SurveyRequest,
    check_unchanged,
    write_survey,
)

# More groups than this have short names, as a key such as the text would fill the memory. Both arbitrary.
MAX_LONG_GROUPS, SHORT_CHARACTERS = 256, 1000
NUMBERS = (int, float)  # made once: a union is made anew each time
LARGEST = float(np.finfo(np.float32).max)
MAX_TOKENS = 2**40  # per document, so that the sum over a corpus fits in 64 bits
ALL = slice(None)
SLICE_ROWS = 1 << 16  # rows of a column that are read at a time; arbitrary

_log = logging.getLogger(__name__)


def make_survey(file: TaskFile, request: SurveyRequest) -> SurveyReport:
    """Reads one annotated file and writes its survey.

    Raises:
        AnnotationError: A line is broken, no line has a score, the embeddings do not belong to the file, the key `per`
            has too many values, or the file changed meanwhile.
        EmbeddingFileError: The file of embeddings is not one.
        SourceError: The annotated file is missing, unreadable or truncated.
        OSError: Reading or writing failed.
    """
    started = time.monotonic()
    facts, annotated = request.facts(file), identity_of(file)  # before reading, so that a change is noticed
    with ExitStack() as stack:
        embeddings = None
        if request.embeddings is not None:
            embeddings = stack.enter_context(embeddings_of(file, request.embeddings, request.group))
        survey = _read_lines(file, request, annotated, embeddings)
        if embeddings is not None:
            survey = _joined(survey, file, request.per, embeddings)
    check_unchanged(file, survey)
    write_survey(survey, file, request, facts)
    seconds = time.monotonic() - started
    _log.info("%s: %d documents in %.1f s", file.relative, len(survey), seconds)
    return SurveyReport(file.relative, str(request.output(file)), "surveyed", len(survey), seconds)


def _read_lines(
    file: TaskFile, request: SurveyRequest, annotated: Mapping[str, Any], embeddings: EmbeddingFile | None
) -> Survey:
    """Returns what the lines contain; checks their ids where no provenance ties them to the embeddings."""
    per = None if _stored_key(request.per, embeddings) else request.per  # stored groups replace those of the lines
    ids = repeat(None) if embeddings is None or provenance_of(file) is not None else _ids(embeddings)
    scores: list[float] = []
    tokens: list[int] = []
    group: list[int] = []
    codes: dict[str, int] = {}
    present: set[str] = set()
    record: Record = {}
    path = file.path
    for line in lines_of(path):
        record = record_of(line, path, large_numbers=False)  # no number that is read is, and groups are taken as text
        for name in request.scores:
            field = score_field(name, record, path)
            if field is None:
                scores.append(math.nan)
            else:
                scores.append(_number(record[field]))
                present.add(name)
        tokens.append(_tokens(record.get(N_TOKENS)))
        group.append(_code(NO_GROUP if per is None else _group(record, per), codes, file, per))
        if (expected := next(ids, None)) is not None:
            _check_id(record, expected, path, line.number, embeddings)
    for name in request.scores:
        if scores and name not in present:
            raise AnnotationError(
                f'{file.path}: there is no score "{name}" nor "{SCORE_PREFIX}{name}"; the lines have: '
                f"{', '.join(record)}"
            )
    return Survey(
        file.stem,
        request.scores,
        np.array(scores, np.float32).reshape(len(tokens), len(request.scores)),
        np.array(tokens, np.int64),
        np.array(group, np.int32),
        tuple(codes),
        annotated,
    )


def _joined(survey: Survey, file: TaskFile, per: str | None, embeddings: EmbeddingFile) -> Survey:
    """Returns a survey with the numbers of tokens and the groups of the embeddings, where they are stored."""
    if embeddings.n_rows != len(survey):
        raise AnnotationError(
            f"{file.path} has {len(survey)} lines, and {embeddings.path} {embeddings.n_rows} rows; annotate again"
        )
    if N_TOKENS in embeddings.names():
        survey = replace(survey, tokens=embeddings.array(N_TOKENS, ALL).astype(np.int64))
    place = _stored_key(per, embeddings)
    if place is None:
        return survey
    codes: dict[str, int] = {}
    group = [_code(value, codes, file, per) for value in _strings(embeddings, place)]
    return replace(survey, group=np.array(group, np.int32), groups=tuple(codes))


def _stored_key(per: str | None, embeddings: EmbeddingFile | None) -> str | None:
    """Returns the name of the dataset with the values of a key; None where the embeddings do not store them."""
    return None if embeddings is None or per is None else embeddings.find(per)


def _strings(embeddings: EmbeddingFile, place: str) -> Iterator[str]:
    for rows in embeddings.slices(SLICE_ROWS):
        yield from embeddings.strings(place, rows)


def _ids(embeddings: EmbeddingFile) -> Iterator[str | None]:
    """Returns the document id of each row; None for each where the file does not store them."""
    return _strings(embeddings, DOCUMENT_ID) if DOCUMENT_ID in embeddings.names() else repeat(None)


def _check_id(record: Record, expected: str, path: Path, line: int, embeddings: EmbeddingFile | None) -> None:
    if embeddings is not None and as_string(record.get(DOCUMENT_ID, expected)) != expected:
        raise AnnotationError(
            f'{path}:{line}: the document is "{record[DOCUMENT_ID]}", but the same row of {embeddings.path} is '
            f'"{expected}"; annotate again'
        )


def _number(value: Any) -> float:
    """Returns a finite score, or NaN; true and false are 1 and 0."""
    return float(value) if isinstance(value, NUMBERS) and abs(value) <= LARGEST else math.nan


def _tokens(value: Any) -> int:
    is_number = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    return int(value) if is_number and 0 <= value <= MAX_TOKENS else UNKNOWN


def _group(record: Record, per: str) -> str:
    try:
        value = find_value(record, per)
    except KeyError:
        return NO_GROUP
    return NO_GROUP if value is None else string_at(record, per)


def _code(value: str, codes: dict[str, int], file: TaskFile, per: str | None) -> int:
    """Returns the index of a group, a new one for a new value.

    Raises:
        AnnotationError: There are too many. Raised at once: a key such as the text would fill the memory.
    """
    code = codes.setdefault(value, len(codes))
    if code >= MAX_LONG_GROUPS and (code >= MAX_GROUPS or len(value) > SHORT_CHARACTERS):
        values = f"{MAX_GROUPS:,} values" if code >= MAX_GROUPS else f"{MAX_LONG_GROUPS} values, and long ones"
        raise AnnotationError(
            f'{file.path}: params.keep.per: "{per}" has more than {values}; name a key that documents can be grouped '
            "by, such as language"
        )
    return code
