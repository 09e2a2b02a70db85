"""The survey of an annotated file: the scores, number of tokens and group of each document, as columns in a small file.

So the thresholds of a whole corpus are found without reading its documents again.
"""

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import orjson
from numpy.typing import NDArray

from mlfilter_core.config.filtering import FilterParameters
from mlfilter_core.errors import AnnotationError, FileError
from mlfilter_core.files.identity import is_same_file
from mlfilter_core.files.numpy_archives import DAMAGED, column, is_damage
from mlfilter_core.files.publishing import publish
from mlfilter_core.files.task_files import TaskFile
from mlfilter_core.filtering.annotated_file import embeddings_path
from mlfilter_core.work.workload import ReportDefaults

SURVEY_FOLDER, SUFFIX = ".survey", ".npz"
NO_GROUP = ""  # group of the documents without the key
UNKNOWN = -1  # number of tokens where it is not recorded
MAX_GROUPS = 1 << 16  # of a file, and of a corpus: a survey stores the group of a document in at most two bytes


@dataclass(frozen=True)
class Survey:
    """The columns of a file of n documents.

    Attributes:
        stem: Name of the file without its suffix.
        names: Names of the scores.
        scores: float32 (n, n_scores); NaN where a document lacks the score.
        tokens: Integers (n,), number of tokens; `UNKNOWN` where it is not recorded, or not loaded.
        group: Integers (n,), index in `groups`.
        groups: Values of the key `per`, and `NO_GROUP` for documents without it.
        annotated: Identity of the annotated file.
        first_row: Row of the first document in the file, for a part of a survey.
    """

    stem: str
    names: tuple[str, ...]
    scores: NDArray[np.float32]
    tokens: NDArray[np.signedinteger[Any]]
    group: NDArray[np.integer[Any]]
    groups: tuple[str, ...]
    annotated: Mapping[str, Any]
    first_row: int = 0

    def __len__(self) -> int:
        return len(self.scores)

    def part(self, rows: slice) -> "Survey":
        """Returns the survey of consecutive documents; its columns are views."""
        return replace(
            self,
            scores=self.scores[rows],
            tokens=self.tokens[rows],
            group=self.group[rows],
            first_row=self.first_row + rows.indices(len(self))[0],
        )

    def scores_of(self, name: str) -> NDArray[np.float32]:
        """Returns one score of each document, float32 (n,)."""
        return self.scores[:, self.names.index(name)]

    def score_sums(self) -> dict[str, dict[str, tuple[int, float]]]:
        """Returns the number of documents with each score and the sum of their scores, by group and score."""
        sums: dict[str, dict[str, tuple[int, float]]] = {group: {} for group in self.groups}
        for name in self.names:
            scores = self.scores_of(name)
            is_scored = ~np.isnan(scores)
            group, n_groups = self.group[is_scored], len(self.groups)
            counts = np.bincount(group, minlength=n_groups).tolist()
            totals = np.bincount(group, scores[is_scored], n_groups).tolist()
            for of_group, count, total in zip(sums.values(), counts, totals, strict=True):
                of_group[name] = count, total
        return sums

    def known_tokens(self) -> NDArray[np.int64]:
        """Returns the number of tokens of each document, int64 (n,); 0 where it is unknown."""
        return np.where(self.tokens == UNKNOWN, 0, self.tokens).astype(np.int64)


@dataclass(frozen=True)
class SurveyReport(ReportDefaults):
    """The result of surveying one annotated file.

    Attributes:
        annotated: Path of the annotated file, relative to its folder.
        output: Path of the survey.
        status: `surveyed`, or `skipped` where the survey was finished before.
        documents: Number of documents.
        seconds: Wall time; 0 where skipped.
        worker: Name of the process; empty where skipped.
        started: Start time in seconds since 1970, UTC; 0 where skipped.
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
    """A file has no survey, or only one of another version of the file or for another selection."""


@dataclass(frozen=True)
class SurveyRequest:
    """What the surveys of a run contain.

    Attributes:
        folder: Folder of the surveys.
        scores: Names of the scores, as in the selection.
        per: Key to group documents by.
        embeddings: Folder of the embeddings, which contain the numbers of tokens; None without them.
        group: Name of the HDF5 group in the files of embeddings.
    """

    folder: Path
    scores: tuple[str, ...]
    per: str | None
    embeddings: Path | None
    group: str

    @staticmethod
    def of(params: FilterParameters) -> "SurveyRequest":
        """Returns the request of a job."""
        return SurveyRequest(
            folder=params.filtered_dir / SURVEY_FOLDER,
            scores=tuple(params.keep.scores),
            per=params.keep.per,
            embeddings=params.embeddings_directory,
            group=params.hdf5_dataset_name,
        )

    def output(self, file: TaskFile) -> Path:
        return file.output(self.folder, SUFFIX)

    def facts(self, file: TaskFile) -> dict[str, Any]:
        """Returns what the survey of a file depends on besides the annotated file."""
        embeddings = None
        if self.embeddings is not None and (path := embeddings_path(file, self.embeddings)) is not None:
            status = path.stat()
            embeddings = [self.group, status.st_size, status.st_mtime_ns]
        return {"scores": list(self.scores), "per": self.per, "embeddings": embeddings}


def write_survey(survey: Survey, file: TaskFile, request: SurveyRequest, facts: Mapping[str, Any]) -> None:
    """Writes the survey of a file, complete or not at all.

    Args:
        survey: The survey.
        file: The annotated file.
        request: Request of the surveys.
        facts: Result of `SurveyRequest.facts` before the file was read.

    Raises:
        OSError: Writing failed.
    """
    facts = {**facts, "groups": survey.groups, "annotated": survey.annotated, "documents": len(survey)}
    is_short = survey.tokens.max(initial=0) <= np.iinfo(np.int32).max
    with publish(request.output(file)) as temporary, open(temporary, "wb") as sink:
        np.savez(  # in the narrowest types: the surveys of a billion documents are read several times
            sink,
            scores=survey.scores,
            tokens=survey.tokens.astype(np.int32) if is_short else survey.tokens,
            group=survey.group.astype(np.min_scalar_type(max(0, len(survey.groups) - 1))),
            facts=np.frombuffer(orjson.dumps(facts), np.uint8),
        )


def finished_survey(file: TaskFile, request: SurveyRequest) -> SurveyReport | None:
    """Returns the report of a finished survey, or None where the file has yet to be surveyed.

    A file whose modification time differs is surveyed again: that costs no more than comparing its content.
    """
    try:
        with _stored(file, request) as (facts, _):
            return SurveyReport(file.relative, str(request.output(file)), "skipped", facts["documents"])
    except SurveyMissingError:
        return None


def load_survey(file: TaskFile, request: SurveyRequest, with_tokens: bool = True) -> Survey:
    """Returns the survey of the current version of a file; its arrays are read-only.

    Args:
        file: The annotated file.
        request: Request of the surveys.
        with_tokens: Whether to load the numbers of tokens, which only budgets and counts need.

    Raises:
        SurveyMissingError: There is none, only one of another version of the file or for another request, or it is
            damaged.
        OSError: The annotated file is missing.
    """
    with _stored(file, request) as (facts, archive):
        n, names, groups = facts["documents"], facts["scores"], facts["groups"]
        return Survey(
            stem=file.stem,
            names=tuple(names),
            scores=column(archive, "scores", np.float32).reshape(n, len(names)),
            tokens=column(archive, "tokens", np.int32, np.int64).reshape(n)
            if with_tokens
            else np.full(n, UNKNOWN, np.int8),
            group=column(archive, "group", np.uint8, np.uint16, np.int32).reshape(n)
            if len(groups) > 1
            else np.zeros(n, np.uint8),
            groups=tuple(groups),
            annotated=facts["annotated"],
        )


@contextmanager
def _stored(file: TaskFile, request: SurveyRequest) -> Iterator[tuple[Mapping[str, Any], zipfile.ZipFile]]:
    """Yields the facts of a survey, and the archive of its columns."""
    try:
        with open(request.output(file), "rb") as opened, zipfile.ZipFile(opened) as archive:
            facts = orjson.loads(column(archive, "facts", np.uint8).data)
            if not is_same_file(file.path, facts["annotated"], read_content=False):
                raise SurveyMissingError(f"{file.path} was changed since it was surveyed; run the job again")
            if any(facts[name] != value for name, value in request.facts(file).items()):
                raise SurveyMissingError(
                    f"{file.path} was surveyed for other scores, another params.keep.per or other embeddings; run the "
                    "job again; jobs that run at the same time need different output_dirs"
                )
            yield facts, archive
    except (OSError, *DAMAGED) as error:
        if not is_damage(error):
            raise
        if not isinstance(error, FileNotFoundError):
            with suppress(OSError):
                request.output(file).unlink()  # otherwise the next run would find it finished, too
        raise SurveyMissingError(f"{file.path} has not been surveyed ({error}); run the job") from error


def check_unchanged(file: TaskFile, survey: Survey) -> None:
    """Checks that an annotated file did not change while it was read.

    Raises:
        AnnotationError: It differs from the file that the survey was made from.
    """
    if not is_same_file(file.path, survey.annotated, read_content=False):
        raise AnnotationError(
            f"{file.path} was changed while it was read; run the job again once no other process writes it"
        )
