"""A job's work on one file after another."""

import logging
import os
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import Field, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from mlfilter_core.errors import FileError
from mlfilter_core.files.publishing import claim_outputs
from mlfilter_core.files.task_files import TaskFile


class FileReport(Protocol):
    """What the report of every file says: a dataclass, with the file's name as its first field.

    Attributes:
        PRINTED: Columns of the table that is printed, after the file's name and status.
        SUMMED: Columns that are added up over the files.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]
    PRINTED: ClassVar[Sequence[str]]
    SUMMED: ClassVar[Sequence[str]]

    @staticmethod
    def remarks_on(reports: Sequence[Any]) -> list[str]:
        """Returns what a person should know of a run, from the reports of its files."""

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


Report = TypeVar("Report", bound=FileReport)
Report_co = TypeVar("Report_co", bound=FileReport, covariant=True)

SKIPPED = "skipped"

_log = logging.getLogger(__name__)


class Work(ABC, Generic[Report_co]):
    """What a job does with each of its files."""

    @abstractmethod
    def outputs(self, file: TaskFile) -> Sequence[Path]:
        """Returns the files that are made from a file; the first one stands for all where processes compete."""

    @abstractmethod
    def finished(self, file: TaskFile, read_content: bool) -> Report_co | None:
        """Returns the report of a finished file, or None where it is not finished.

        Args:
            file: The file.
            read_content: Whether to read a file or output whose modification time differs; otherwise it counts as
                not finished.

        Raises:
            FileError: The file cannot be processed, or an output of another request is in the way.
        """

    @abstractmethod
    def make(self, file: TaskFile) -> Report_co:
        """Makes the outputs of a file that is not finished, and returns its report."""

    def prepare(self, files: Sequence[TaskFile]) -> None:
        """Checks, before the first file, what would fail every file. By default nothing: the first file shows it.

        Args:
            files: All files of the run, including finished ones.
        """

    def run(self, file: TaskFile) -> Report_co:
        """Returns the report of one file, made now unless it was finished before, as by a task whose worker was lost.

        Waits while another process makes the same outputs.
        """
        with claim_outputs(*self.outputs(file)):
            return self.finished(file, read_content=True) or self.make(file)


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


def run_in_turn(work: Work[Report], files: Sequence[TaskFile]) -> list[Report]:
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


def worker_name() -> str:
    """Returns what this process is called in logs and reports."""
    return f"worker-{socket.gethostname()}-{os.getpid()}"
