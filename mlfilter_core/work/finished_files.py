"""Which files of a workload are finished: by the ledger where it can tell, otherwise by the outputs themselves."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self

import orjson

from mlfilter_core.files.ledger import Entry, Ledger, Versions, known_versions
from mlfilter_core.files.task_files import TaskFile
from mlfilter_core.work.output_folders import OutputFolders
from mlfilter_core.work.workload import OF_THIS_RUN, SKIPPED, Report, Work, Workload, facts_of

FOLDER = ".finished"  # in the folder of the outputs
RULES = 1  # to be raised when `Work.finished` of any kind refuses what it took for finished before


class FinishedFiles(Generic[Report]):
    """Finds the finished files of a workload, and remembers them for later runs."""

    def __init__(self, workload: Workload[Report], remembers: bool = True) -> None:
        """Opens the ledger of a workload.

        Args:
            workload: The files, and the work on each.
            remembers: Whether to write to the ledger.
        """
        self._work: Work[Report] = workload.work
        made_by = workload.work.made_by()
        self._request = "" if made_by is None else _digest(made_by)
        self._ledger = None if made_by is None else Ledger(workload.output_dir / FOLDER / workload.flow)
        self._remembers = remembers
        self._folders = OutputFolders(workload.work)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._ledger is None:
            return
        self._ledger.flush()
        if self._remembers and error is None:  # a run that somebody stops ends at once
            self._ledger.merge()
        self._ledger.close()

    def find(self, file: TaskFile) -> Report | None:
        """Returns the report of a finished file, as `Work.finished` without reading content.

        Raises:
            FileError, OSError: As `Work.finished`.
        """
        if self._ledger is None:
            return self._work.finished(file, read_content=False)
        if not self._folders.exist_for(file):
            return None
        evidence = self._work.evidence(file)
        versions = known_versions(evidence)
        entry = self._ledger.find(file.relative)
        if entry is not None and versions and (entry.request, entry.versions) == (self._request, versions):
            report = self._report(file, entry, evidence)
            if report is not None:
                return report
        report = self._work.finished(file, read_content=False)
        if report is not None and versions and known_versions(evidence) == versions:
            self._add(file, report, versions)
        return report

    def add(self, file: TaskFile, report: Report) -> None:
        """Remembers a file that a worker has just finished, or found finished."""
        if report.versions:
            self._add(file, report, report.versions)

    def _add(self, file: TaskFile, report: Report, versions: Versions) -> None:
        if self._ledger is None or not self._remembers:
            return
        output = [str(path) for path in self._work.evidence(file)].index(report.output)
        facts = dict(list(facts_of(report).items())[1:])
        kept = {name: fact for name, fact in facts.items() if name not in (*OF_THIS_RUN, "status")}
        self._ledger.add(Entry(file.relative, self._request, versions, {**kept, "output": output}))

    def _report(self, file: TaskFile, entry: Entry, evidence: Sequence[Path]) -> Report | None:
        """Returns the report of an entry; None for one of another release."""
        try:
            facts: dict[str, Any] = {
                name: tuple(value) if isinstance(value, list) else value for name, value in entry.facts.items()
            }
            output = str(evidence[facts.pop("output")])
            report: Report = self._work.REPORT(file.relative, output=output, status=SKIPPED, **facts)
        except (TypeError, KeyError, IndexError, AttributeError):
            return None
        return report


def _digest(made_by: Any) -> str:
    content = orjson.dumps([RULES, made_by], default=_plain, option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS)
    return hashlib.sha256(content).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(type(value))
