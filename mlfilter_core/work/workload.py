"""The work of a job, file by file."""

import functools
import logging
import os
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import Field, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar

from mlfilter_core.errors import FileError
from mlfilter_core.files.ledger import Versions, known_versions
from mlfilter_core.files.publishing import claim_outputs
from mlfilter_core.files.task_files import WHOLE, TaskFile
from mlfilter_core.wording import plural
from mlfilter_core.work.progress import TELL_S, Progress, ProgressTeller


class FileReport(Protocol):
    """The report of one file: a dataclass whose first own field is the name of the file.

    Attributes:
        PRINTED: Columns of the printed table, after name and status.
        SUMMED: Columns with totals over the files.
        NO_COLUMNS: Fields that are not columns of `files.jsonl`.
        SPREAD: Fields with mappings whose entries become separate columns. Other mappings with more than `MAX_ENTRIES`
            entries are not in the rows.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]
    PRINTED: ClassVar[Sequence[str]]
    SUMMED: ClassVar[Sequence[str]]
    NO_COLUMNS: ClassVar[Sequence[str]]
    SPREAD: ClassVar[Sequence[str]]

    def with_parts(self, parts: Sequence[Any]) -> Self:
        """Returns the report of a file that was made from parts, with what they took; given their reports."""

    @staticmethod
    def remarks_on(reports: Sequence[Any]) -> list[str]:
        """Returns remarks on a run, from the reports of its files."""

    @staticmethod
    def sample_of(reports: Sequence[Any]) -> list[str]:
        """Returns lines that show what was written, for the end of a run; may read an output."""

    @property
    def output(self) -> str:
        """Path of the output."""

    @property
    def status(self) -> str:
        """Kind of result; `skipped` where the output was finished before."""

    @property
    def documents(self) -> int:
        """Number of documents."""

    @property
    def seconds(self) -> float:
        """Wall time; 0 where skipped."""

    @property
    def worker(self) -> str:
        """Name of the process; empty where skipped."""

    @property
    def started(self) -> float:
        """Start time in seconds since 1970, UTC; 0 where skipped."""

    @property
    def versions(self) -> Versions:
        """Versions of the file and its outputs when it was finished; empty where unknown."""

    @property
    def stated(self) -> Sequence[Any]:
        """What its outputs state, for the report on their folder; empty where nobody asked."""


@dataclass(frozen=True)
class ReportDefaults:
    """The defaults of a file report: no remarks, no sample, no special columns.

    Attributes:
        versions: Versions of the file and its outputs when it was finished; empty where unknown.
        stated: What its outputs state, for the report on their folder; empty where nobody asked.
    """

    NO_COLUMNS: ClassVar[Sequence[str]] = ()
    SPREAD: ClassVar[Sequence[str]] = ()

    versions: Versions = field(default=(), kw_only=True, compare=False, repr=False)
    stated: Sequence[Any] = field(default=(), kw_only=True, compare=False, repr=False)

    def with_parts(self, parts: Sequence[Any]) -> Self:
        """Returns the report with the time that its parts took in this run, if any was made in it."""
        new = made_in_this_run(parts)
        return replace(self, **time_of_parts(new)) if new else self

    @staticmethod
    def remarks_on(reports: Sequence[Any]) -> list[str]:
        """Returns no remarks."""
        return []

    @staticmethod
    def sample_of(reports: Sequence[Any]) -> list[str]:
        """Returns no lines."""
        return []


Report = TypeVar("Report", bound=FileReport)
Report_co = TypeVar("Report_co", bound=FileReport, covariant=True)

SKIPPED = "skipped"
# Of a mapping in a row of a run, such as the counts of a file's groups: the flow holds 1,000 rows. Arbitrary.
MAX_ENTRIES = 256
NO_FACTS = ("versions", "stated")  # fields of a report that tell nothing about the file
# Facts of a report that are of the run, not of the file.
OF_THIS_RUN = ("seconds", "waited", "encoder", "worker", "started", "resumed")

_log = logging.getLogger(__name__)


class Work(ABC, Generic[Report_co]):
    """What a job does with each of its files.

    Attributes:
        IMPORTS: Modules that take seconds to import and that `make` needs; workers import them while they start.
        REPORT: Class of the reports.
    """

    IMPORTS: ClassVar[Sequence[str]] = ()
    REPORT: ClassVar[type[Any]]

    @property
    def shares_outputs(self) -> bool:
        """Whether a job of another kind, which claims another file, may make the same outputs; by default not."""
        return False

    @property
    def divides_all(self) -> bool:
        """Whether every file is divided, however large it is; by default not."""
        return False

    def divide(self, file: TaskFile, n_parts: int) -> Sequence[TaskFile]:
        """Returns the parts of a file that are worked on separately before the whole file; by default none.

        Args:
            file: A file that is not finished.
            n_parts: Number of parts that would balance the workers; 1 for none.
        """
        return ()

    @abstractmethod
    def outputs(self, file: TaskFile) -> Sequence[Path]:
        """Returns the files that are made from a file; processes that compete for them claim the first one."""

    @abstractmethod
    def finished(self, file: TaskFile, read_content: bool) -> Report_co | None:
        """Returns the report of a finished file, or None where it is not finished.

        Args:
            file: The file.
            read_content: Whether to read a file or output whose modification time differs; otherwise it counts as
                not finished.

        Raises:
            FileError: The file cannot be processed, or an output of another request exists.
        """

    def made_by(self) -> Mapping[str, Any] | None:
        """Returns all that outputs and reports depend on beside `evidence`; by default None, and no ledger is kept."""
        return None

    def evidence(self, file: TaskFile) -> Sequence[Path]:
        """Returns the files by which `finished` decides, the file itself first.

        Where none of them has changed, the answer is the same; where none but the file exists, it is None.
        """
        return file.path, *self.outputs(file)

    @abstractmethod
    def make(self, file: TaskFile) -> Report_co:
        """Makes the outputs of a file that is not finished, and returns its report."""

    def further_files(self, file: TaskFile) -> Sequence[Path]:
        """Returns the files that `make` reads beside a file that exists; by default none."""
        return ()

    def session(self, to_do: Sequence[TaskFile]) -> AbstractContextManager[None]:
        """Returns what holds while a run works on the files that are to do; by default nothing."""
        return nullcontext()

    def check(self, files: Sequence[TaskFile]) -> None:
        """Checks the same as `prepare`, as far as seconds and light libraries suffice; called before all else.

        Args:
            files: All files of the run, including finished ones.
        """

    def prepare(self, files: Sequence[TaskFile]) -> None:
        """Checks, before the first file, for problems that would fail every file; by default for none.

        Args:
            files: All files of the run, including finished ones.
        """

    def conclude(self) -> None:
        """Makes what comes of the outputs of all files; called at the end of a run without failures, before its page.

        Called where a file was done or `is_concluded` is false. Files of other runs, such as those of other shards, may
        be missing. By default nothing.
        """

    def is_concluded(self) -> bool:
        """Returns whether what `conclude` makes is there; by default True. Cheap: asked also where all is finished."""
        return True

    def run(self, file: TaskFile) -> Report_co:
        """Returns the report of one file or a part of it; makes its outputs unless a lost worker has finished them.

        Waits while another process makes the same outputs.
        """
        evidence = self.evidence(file)
        with claim_outputs(*self.outputs(file)):
            before = known_versions(evidence)
            finished = self.finished(replace(file, part=WHOLE), read_content=True)
            report = finished or self.make(file)
            after = known_versions(evidence) if file.part == WHOLE else ()
            # While they are claimed, nobody else makes the outputs; what was there before may be changed by anybody.
            is_known = after == before if finished else after[:1] == before[:1] and self._are_own(file, after)
        return replace(report, versions=after) if is_known else report

    def run_all(self, files: Sequence[TaskFile]) -> "list[Report_co | FileError]":
        """Returns the report of each file, or the error that it has; by default runs one file after another."""
        return [self.outcome(file) for file in files]

    def outcome(self, file: TaskFile) -> "Report_co | FileError":
        """Returns the report of a file, with worker and start time, or the error that it has."""
        _log.debug("%s begins", file.name)  # the last message of a process that this file kills
        try:
            report = self.run(file)
        except FileError as error:
            return error
        if report.status == SKIPPED:
            return report
        if report.seconds >= TELL_S:
            _tell_end(file, report)
        # Not the time before the call: the first file of a process loads the model, which does not count.
        return replace(report, worker=worker_name(), started=time.time() - report.seconds)

    def _are_own(self, file: TaskFile, versions: Versions) -> bool:
        """Returns whether these versions of outputs that were just made are those of this job."""
        if not self.shares_outputs:
            return True
        try:
            is_finished = self.finished(file, read_content=False) is not None
        except FileError:
            return False
        return is_finished and known_versions(self.evidence(file)) == versions


@dataclass(frozen=True)
class Workload(Generic[Report]):
    """The files of a run, and the work on each.

    Attributes:
        flow: Name of the flow.
        files: Files of this run, of its shards only, sorted by name.
        work: Work on each file.
        output_dir: Folder of the results.
        is_step: Whether the flow continues with another workload.
    """

    flow: str
    files: Sequence[TaskFile]
    work: Work[Report]
    output_dir: Path
    is_step: bool = False


class SomeFilesFailedError(FileError):
    """Some of several files failed, and the others are finished.

    Attributes:
        reports: Reports of the finished files.
        failures: Reasons of the failed files, by name.
    """

    def __init__(self, reports: Sequence[Any], failures: Mapping[str, str]) -> None:
        super().__init__(reports, failures)  # arguments to unpickle it with in another process
        self.reports = reports
        self.failures = failures

    def __str__(self) -> str:
        return "; ".join(f"{name}: {reason}" for name, reason in self.failures.items())


def run_files(files: Sequence[TaskFile], work: Work[Report]) -> list[Report]:
    """Runs the work on several files; a failed file does not stop the others.

    Returns:
        Report of each file, with worker and start time.

    Raises:
        SomeFilesFailedError: Some files failed.
        OSError: The file system failed. Another call skips the finished files.
    """
    reports, failures = [], {}
    for file, outcome in zip(files, work.run_all(files), strict=True):
        if isinstance(outcome, FileError):
            failures[file.name] = str(outcome)
        else:
            reports.append(outcome)
    if failures:
        raise SomeFilesFailedError(reports, failures)
    return reports


def _tell_end(file: TaskFile, report: FileReport) -> None:
    """Tells that a file is finished: its report comes when the last file of its task is."""
    counts = {name: getattr(report, name, 0) for name in ("tokens", "rejected", "out_of_memory")}
    waited = getattr(report, "waited", {})
    n = report.documents
    ProgressTeller().tell(Progress(file.name, n, committed=max(1, n), share=1.0, waited=waited, **counts))


def made_in_this_run(parts: Sequence[Report]) -> list[Report]:
    """Returns the reports of the parts that were not finished before."""
    return [part for part in parts if part.status != SKIPPED]


def time_of_parts(parts: Sequence[FileReport]) -> dict[str, Any]:
    """Returns `seconds`, `started` and `worker` of a file that was just joined from parts of this run."""
    started = min(part.started for part in parts)
    workers = plural(len({part.worker for part in parts}), "worker")
    return {"seconds": time.time() - started, "started": started, "worker": workers}


def name_of(report: FileReport) -> str:
    """Returns the name of the file or part that a report is about: the first field."""
    return str(next(iter(facts_of(report).values())))


def facts_of(report: FileReport) -> dict[str, Any]:
    """Returns the facts of a report by name, the name of the file first; `versions` and `stated` are none."""
    return {name: getattr(report, name) for name in _names_of_facts(type(report))}


@functools.cache
def _names_of_facts(kind: type[FileReport]) -> list[str]:
    return [each.name for each in fields(kind) if each.name not in NO_FACTS]


def row_of(report: FileReport) -> dict[str, Any]:
    """Returns the row of a finished file: its name, then its facts by column."""
    facts = facts_of(report)
    name = facts.pop(next(iter(facts)))
    seconds, output = facts.pop("seconds"), facts.pop("output")
    for fact in report.NO_COLUMNS:
        del facts[fact]
    if not report.worker:  # finished before the run
        del facts["worker"], facts["started"]
    for fact in report.SPREAD:
        facts.update(facts.pop(fact))
    facts = {
        name: value for name, value in facts.items() if not (isinstance(value, Mapping) and len(value) > MAX_ENTRIES)
    }
    n_done = report.documents - facts.get("resumed", 0)
    speed = round(n_done / seconds, 1) if seconds else ""
    return {"file": name, **facts, "seconds": round(seconds, 2), "documents/s": speed, "output": output}


def worker_name() -> str:
    """Returns the name of this process in logs and reports."""
    return f"worker-{socket.gethostname()}-{os.getpid()}"
