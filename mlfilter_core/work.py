"""A job's work on one file after another."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar

from mlfilter_core.corpus import CorpusFile
from mlfilter_core.errors import FileError

Report = TypeVar("Report")
Report_co = TypeVar("Report_co", covariant=True)


_log = logging.getLogger(__name__)


class Work(Protocol[Report_co]):
    """What a job does with each of its files."""

    def finished(self, file: CorpusFile, read_content: bool) -> Report_co | None:
        """Returns the report of a finished file, None for one to do."""

    def prepare(self, files: Sequence[CorpusFile]) -> None:
        """Checks, before the first file is done, what would be wrong with all of them.

        Args:
            files: All of the run, the finished ones as well.
        """

    def run(self, file: CorpusFile) -> Report_co:
        """Does one file, and returns its report."""


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


def run_in_turn(work: Work[Report], files: Sequence[CorpusFile]) -> list[Report]:
    """Does one file after another; one that fails does not stop the others.

    Raises:
        SomeFilesFailedError: Some failed.
        OSError: Of the file system. Called again, those that are finished are left as they are.
    """
    reports, failures = [], {}
    for file in files:
        _log.debug("%s begins", file.relative)  # the last word of a process that dies of it
        try:
            reports.append(work.run(file))
        except FileError as error:
            failures[file.relative] = str(error)
    if failures:
        raise SomeFilesFailedError(reports, failures)
    return reports
