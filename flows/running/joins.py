"""The files of a run that are worked on in parts, and which of them are ready to be joined."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from mlfilter_core.files.task_files import WHOLE, TaskFile
from mlfilter_core.work.workload import Report


class Joins:
    """Counts the parts of files that are not done."""

    def __init__(self, parts: Iterable[TaskFile]) -> None:
        """Takes the tasks of the run that are parts of files."""
        self._n_left = Counter(part.relative for part in parts)
        self._reports: dict[str, list[Any]] = {}

    def is_divided(self, file: TaskFile) -> bool:
        """Returns whether a file is worked on in parts."""
        return file.relative in self._n_left

    def add(self, part: TaskFile, report: Report) -> TaskFile | None:
        """Takes the report of a part; returns the file once all its parts are done."""
        self._n_left[part.relative] -= 1
        self._reports.setdefault(part.relative, []).append(report)
        return None if self._n_left[part.relative] else replace(part, part=WHOLE)

    def report(self, file: TaskFile, report: Report) -> Report:
        """Returns the report of a finished file, with what its parts took."""
        return report.with_parts(self._reports.pop(file.relative, []))
