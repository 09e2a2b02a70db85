"""What a selection needs to know of each document of an annotated file: its scores, its tokens, its group.

A survey is a small file of columns, so that limits over a whole corpus are found without reading its documents again.
"""

import logging
import math
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import orjson
from numpy.typing import NDArray

from mlfilter_core.config.filtering import SCORE_PREFIX, FilterParameters
from mlfilter_core.corpus.documents import as_string, find_value
from mlfilter_core.corpus.records import Record
from mlfilter_core.embedding_store.layout import DOCUMENT_ID, N_TOKENS
from mlfilter_core.embedding_store.reader import EmbeddingFile
from mlfilter_core.errors import AnnotationError, FileError
from mlfilter_core.files.identity import is_same_file
from mlfilter_core.files.publishing import publish
from mlfilter_core.files.task_files import TaskFile
from mlfilter_core.filtering.annotated_file import (
    annotation_of,
    embeddings_of,
    embeddings_path,
    identity_of,
    lines_of,
    record_of,
)
from mlfilter_core.work.workload import ReportDefaults

SURVEY_FOLDER, SUFFIX = ".survey", ".npz"
NO_GROUP = ""  # of documents without the key
# Of a file: a key with more values is none that documents are grouped by.
MAX_GROUPS = 256  # as a byte can tell apart
UNKNOWN = -1
LARGEST = float(np.finfo(np.float32).max)
MOST_TOKENS = 2**40  # of a document: sums of a corpus stay within 64 bits

ALL = slice(None)
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Survey:
    """What is known of the n documents of a file.

    Attributes:
        stem: Of the file.
        names: Of the scores.
        scores: float32 (n, n_scores); NaN where there is none.
        tokens: int64 (n,); `UNKNOWN` where nothing says.
        group: int32 (n,), place in `groups`.
        groups: Values of the key `per`; `NO_GROUP` of documents without it.
        annotated: Identity of the annotated file that was read.
    """

    stem: str
    names: tuple[str, ...]
    scores: NDArray[np.float32]
    tokens: NDArray[np.int64]
    group: NDArray[np.int32]
    groups: tuple[str, ...]
    annotated: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.tokens)

    def scores_of(self, name: str) -> NDArray[np.float32]:
        """Returns one score of each document, float32 (n,)."""
        return self.scores[:, self.names.index(name)]

    def known_tokens(self) -> NDArray[np.int64]:
        """Returns the tokens of each document, int64 (n,); 0 where nothing says."""
        return np.where(self.tokens == UNKNOWN, 0, self.tokens)


@dataclass(frozen=True)
class SurveyReport(ReportDefaults):
    """What became of the survey of one annotated file.

    Attributes:
        annotated: Path relative to the folder of annotated files.
        output: The survey.
        status: `surveyed` now, or `skipped` because that was done before.
        documents: Of the file.
        seconds: Wall time; 0 where skipped.
        worker: The process that did it; empty where skipped.
        started: When that began, in seconds since 1970, UTC; 0 where skipped.
    """

    PRINTED: ClassVar[Sequence[str]] = ("documents", "seconds", "documents/s")
    SUMMED: ClassVar[Sequence[str]] = ("documents",)

    annotated: str
    output: str
    status: Literal["surveyed", "skipped"]
    documents: int
    seconds: float = 0.0
    worker: str = ""
    started: float = 0.0


class SurveyMissingError(FileError):
    """A file has no survey yet, or one of another version of it or for another selection."""


@dataclass(frozen=True)
class SurveyRequest:
    """What is asked of the survey of every file.

    Attributes:
        folder: Of the surveys.
        scores: Names of the scores, as the selection has them.
        per: Key that documents are grouped by.
        embeddings: Folder of the embeddings, which know the tokens.
        group: Name of their HDF5 group.
    """

    folder: Path
    scores: tuple[str, ...]
    per: str | None
    embeddings: Path | None
    group: str

    @staticmethod
    def of(params: FilterParameters) -> "SurveyRequest":
        """Returns what the parameters of a job ask for."""
        return SurveyRequest(
            *(params.filtered_dir / SURVEY_FOLDER, tuple(params.keep.scores), params.keep.per),
            *(params.embeddings_directory, params.hdf5_dataset_name),
        )

    def output(self, file: TaskFile) -> Path:
        return file.output(self.folder, SUFFIX)

    def facts(self, file: TaskFile) -> dict[str, Any]:
        """What decides the survey of a file, but for its lines."""
        embeddings = None
        if self.embeddings is not None and (path := embeddings_path(file, self.embeddings)) is not None:
            status = path.stat()
            embeddings = [self.group, status.st_size, status.st_mtime_ns]
        return {"scores": list(self.scores), "per": self.per, "embeddings": embeddings}


def make_survey(file: TaskFile, request: SurveyRequest) -> SurveyReport:
    """Reads one annotated file, and writes what a selection needs to know of it.

    Raises:
        AnnotationError: A line is broken, no line has a score, the embeddings are others, the key has many values, or
            the file changed meanwhile.
        EmbeddingFileError: The file of embeddings is none.
        SourceError: The annotated file is missing, not readable, or breaks off.
        OSError: Reading or writing failed.
    """
    started = time.monotonic()
    facts, annotated = request.facts(file), identity_of(file)  # before it is read, so that a change is noticed
    if request.embeddings is None:
        survey = _read(file, request, None, annotated)
    else:
        with embeddings_of(file, request.embeddings, request.group) as embeddings:
            survey = _read(file, request, embeddings, annotated)
    check_unchanged(file, survey)
    facts |= {"groups": survey.groups, "annotated": annotated, "documents": len(survey)}
    is_short = survey.tokens.max(initial=0) <= np.iinfo(np.int32).max
    with publish(request.output(file)) as temporary, open(temporary, "wb") as sink:
        np.savez(  # of the narrowest types: a corpus of a billion documents is read several times
            sink,
            scores=survey.scores,
            tokens=survey.tokens.astype(np.int32) if is_short else survey.tokens,
            group=survey.group.astype(np.uint8),
            facts=np.frombuffer(orjson.dumps(facts), np.uint8),
        )
    seconds = time.monotonic() - started
    _log.info("%s: %d documents in %.1f s", file.relative, len(survey), seconds)
    return SurveyReport(file.relative, str(request.output(file)), "surveyed", len(survey), seconds)


def finished_survey(file: TaskFile, request: SurveyRequest) -> SurveyReport | None:
    """Returns the report of a survey that is that of this file; None where one is to be made.

    A file whose time of change differs is surveyed again: that costs no more than to see whether its content does.
    """
    try:
        with _stored(file, request) as (facts, _):
            return SurveyReport(file.relative, str(request.output(file)), "skipped", facts["documents"])
    except SurveyMissingError:
        return None


def load_survey(file: TaskFile, request: SurveyRequest) -> Survey:
    """Returns the survey of a file, as the file is now.

    Raises:
        SurveyMissingError: There is none, it is of another version of the file, or for other scores.
        OSError: The annotated file is missing.
    """
    with _stored(file, request) as (facts, columns):
        return Survey(
            *(file.stem, tuple(facts["scores"]), columns["scores"], columns["tokens"].astype(np.int64)),
            *(columns["group"].astype(np.int32), tuple(facts["groups"]), facts["annotated"]),
        )


@contextmanager
def _stored(file: TaskFile, request: SurveyRequest) -> Iterator[tuple[Mapping[str, Any], Mapping[str, NDArray[Any]]]]:
    """Gives the facts and the columns of a survey, which are read when they are asked for."""
    try:
        with open(request.output(file), "rb") as opened, np.load(opened) as columns:
            facts = orjson.loads(columns["facts"].tobytes())
            if not is_same_file(file.path, facts["annotated"], read_content=False):
                raise SurveyMissingError(f"{file.path} was changed since it was surveyed; run the job again")
            if any(facts[name] != value for name, value in request.facts(file).items()):
                raise SurveyMissingError(
                    f"{file.path} was surveyed for other scores, another params.keep.per or other embeddings; run the "
                    "job again, and give each of two jobs that run at once an output_dir of its own"
                )
            yield facts, columns
    except (FileNotFoundError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise SurveyMissingError(f"{file.path} has not been surveyed ({error}); run the job") from error


def check_unchanged(file: TaskFile, survey: Survey) -> None:
    """Makes sure that an annotated file that was read just now is the one that a survey is of.

    Raises:
        AnnotationError: It is another.
    """
    if not is_same_file(file.path, survey.annotated, read_content=False):
        raise AnnotationError(f"{file.path} was changed while it was read; run again once nobody writes it any more")


def score_field(name: str, record: Record, path: Path) -> str | None:
    """Returns the field of a line that holds a score; None where the line has none.

    Raises:
        AnnotationError: Two fields could be meant.
    """
    found = [field for field in (name, f"{SCORE_PREFIX}{name}") if field in record]
    if len(found) > 1:
        raise AnnotationError(f'{path}: a line has both "{found[0]}" and "{found[1]}"; give params.keep the latter')
    return found[0] if found else None


def _read(
    file: TaskFile, request: SurveyRequest, embeddings: EmbeddingFile | None, annotated: Mapping[str, Any]
) -> Survey:
    scores: list[list[float]] = []
    tokens: list[int] = []
    codes: dict[str, int] = {}
    group: list[int] = []
    n_found = dict.fromkeys(request.scores, 0)
    place = None if embeddings is None or request.per is None else embeddings.find(request.per)
    path = file.path
    ids = _ids(embeddings) if embeddings is not None and annotation_of(file) is None else None
    record: Record = {}
    for line in lines_of(path):
        record = record_of(line, path)
        row = []
        for name in request.scores:
            field = score_field(name, record, path)
            n_found[name] += field is not None
            row.append(math.nan if field is None else _number(record[field]))
        scores.append(row)
        tokens.append(_tokens(record.get(N_TOKENS)))
        if place is None:
            group.append(_code(_group(record, request.per), codes, file, request.per))
        if embeddings is not None and ids is not None:
            _check_id(record, next(ids, None), f"{path}:{line.number}", embeddings.path)
    for name, n in n_found.items():
        if scores and not n:
            raise AnnotationError(
                f'{path}: there is no score "{name}" nor "{SCORE_PREFIX}{name}"; the lines have: {", ".join(record)}'
            )
    if embeddings is not None:
        if embeddings.n_rows != len(scores):
            raise AnnotationError(
                f"{path} has {len(scores)} lines, and {embeddings.path} {embeddings.n_rows} rows; annotate again"
            )
        if N_TOKENS in embeddings.names():
            tokens = embeddings.array(N_TOKENS, ALL).tolist()
        if place is not None:
            for rows in embeddings.slices(1 << 16):
                values = embeddings.column(place, rows)
                group += [_code(as_string(value), codes, file, request.per) for value in values]
    return Survey(
        file.stem,
        request.scores,
        np.array(scores, np.float32).reshape(len(scores), len(request.scores)),
        np.array(tokens, np.int64),
        np.array(group, np.int32),
        tuple(codes),
        annotated,
    )


def _ids(embeddings: EmbeddingFile) -> Iterator[str] | None:
    """Returns the id of each row, None where they have none."""
    if DOCUMENT_ID not in embeddings.names():
        return None
    return (as_string(value) for rows in embeddings.slices(1 << 16) for value in embeddings.column(DOCUMENT_ID, rows))


def _check_id(record: Record, expected: str | None, place: str, embeddings: Path) -> None:
    if record.get(DOCUMENT_ID, expected) != expected:
        raise AnnotationError(
            f'{place}: the document is "{record[DOCUMENT_ID]}", and that of the same row of {embeddings} "{expected}"; '
            "annotate again"
        )


def _number(value: Any) -> float:
    """Returns a finite score, or NaN; true and false are 1 and 0."""
    return float(value) if isinstance(value, int | float) and abs(value) <= LARGEST else math.nan


def _tokens(value: Any) -> int:
    is_number = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    return int(value) if is_number and 0 <= value <= MOST_TOKENS else UNKNOWN


def _group(record: Record, per: str | None) -> str:
    if per is None:
        return NO_GROUP
    try:
        value = find_value(record, per)
    except KeyError:
        return NO_GROUP
    return NO_GROUP if value is None else as_string(value)


def _code(value: str, codes: dict[str, int], file: TaskFile, per: str | None) -> int:
    code = codes.setdefault(value, len(codes))
    if code >= MAX_GROUPS:
        raise AnnotationError(
            f'{file.path}: params.keep.per: "{per}" has more than {MAX_GROUPS} values; name a key that documents can '
            "be grouped by, such as language"
        )
    return code
