"""A job's work on one file after another."""

import logging
import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import Field, asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from mlfilter_core.errors import FileError
from mlfilter_core.files.task_files import TaskFile


class FileReport(Protocol):
    """What the report of every file says: a dataclass, with the file's name as its first field.

    Attributes:
        PRINTED: Columns of the table that is printed, after the file's name and status.
        SUMMED: Columns that are added up over the files.
        NO_COLUMNS: Fields that stand in no row of `files.jsonl`.
        SPREAD: Fields, mappings all, whose entries are columns of their own.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]
    PRINTED: ClassVar[Sequence[str]]
    SUMMED: ClassVar[Sequence[str]]
    NO_COLUMNS: ClassVar[Sequence[str]]
    SPREAD: ClassVar[Sequence[str]]

    @staticmethod
    def remarks_on(reports: Sequence[Any]) -> list[str]:
        """Returns what a person should know of a run, from the reports of its files."""

    @staticmethod
    def sample_of(reports: Sequence[Any]) -> list[str]:
        """Returns lines that show what was written, for the end of a run; may read an output."""

    @property
    def output(self) -> str:
        """The file that was written."""

    @property
    def status(self) -> str:
        """What was done, `skipped` where it was finished before."""

    @property
    def documents(self) -> int:
        """Documents in it."""

    @property
    def seconds(self) -> float:
        """Wall time; 0 where skipped."""

    @property
    def worker(self) -> str:
        """The process that did it; empty where skipped."""

    @property
    def started(self) -> float:
        """When that began, in seconds since 1970, UTC; 0 where skipped."""


class ReportDefaults:
    """What reports of files share that have nothing to add."""

    NO_COLUMNS: ClassVar[Sequence[str]] = ()
    SPREAD: ClassVar[Sequence[str]] = ()

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

_log = logging.getLogger(__name__)


class Work(Protocol[Report_co]):
    """What a job does with each of its files."""

    def finished(self, file: TaskFile, read_content: bool) -> Report_co | None:
        """Returns the report of a finished file, None for one to do."""

    def prepare(self, files: Sequence[TaskFile]) -> None:
        """Checks, before the first file is done, what would be wrong with all of them.

        Args:
            files: All of the run, the finished ones as well.
        """

    def run(self, file: TaskFile) -> Report_co:
        """Does one file, and returns its report."""


@dataclass(frozen=True)
class Workload(Generic[Report]):
    """What a run is to do.

    Attributes:
        flow: Name of the flow.
        files: This run's share of them, sorted by name.
        work: What is done with each.
        output_dir: Where the results lie.
        is_step: Whether the flow goes on with another workload.
    """

    flow: str
    files: Sequence[TaskFile]
    work: Work[Report]
    output_dir: Path
    is_step: bool = False


class SomeFilesFailedError(FileError):
    """Of several files, some failed and the others are finished.

    Attributes:
        reports: Of the finished files.
        failures: Why a file failed, by its relative path.
    """

    def __init__(self, reports: Sequence[Any], failures: Mapping[str, str]) -> None:
        super().__init__(reports, failures)  # what a copy is made from, in another process
        self.reports = reports
        self.failures = failures

    def __str__(self) -> str:
        return "; ".join(f"{name}: {reason}" for name, reason in self.failures.items())


def run_in_turn(files: Sequence[TaskFile], work: Work[Report]) -> list[Report]:
    """Does one file after another; one that fails does not stop the others.

    Returns:
        The report of each, which says who did it and when.

    Raises:
        SomeFilesFailedError: Some failed.
        OSError: Of the file system. Called again, those that are finished are left as they are.
    """
    reports, failures = [], {}
    for file in files:
        _log.debug("%s begins", file.relative)  # the last word of a process that dies of it
        try:
            report = work.run(file)
            if report.status != SKIPPED:
                # Not from before the call: the first of a process loads the model, which is no time of the file's.
                report = replace(report, worker=worker_name(), started=time.time() - report.seconds)
            reports.append(report)
        except FileError as error:
            failures[file.relative] = str(error)
    if failures:
        raise SomeFilesFailedError(reports, failures)
    return reports


def row_of(report: FileReport) -> dict[str, Any]:
    """Returns the row of a finished file: its name, then its facts by column."""
    facts = asdict(report)
    name = facts.pop(next(iter(facts)))
    seconds, output = facts.pop("seconds"), facts.pop("output")
    for field in report.NO_COLUMNS:
        del facts[field]
    if not report.worker:  # finished before the run
        del facts["worker"], facts["started"]
    for field in report.SPREAD:
        facts.update(facts.pop(field))
    n_done = report.documents - facts.get("resumed", 0)
    speed = round(n_done / seconds, 1) if seconds else ""
    return {"file": name, **facts, "seconds": round(seconds, 2), "documents/s": speed, "output": output}


def worker_name() -> str:
    """Returns what this process is called in logs and reports."""
    return f"worker-{socket.gethostname()}-{os.getpid()}"
