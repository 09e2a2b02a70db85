"""Which files may have outputs at all: those whose outputs would lie in folders that exist."""

from typing import Any

from mlfilter_core.files.task_files import TaskFile
from mlfilter_core.work.workload import Work


class OutputFolders:
    """Looks up the folders of outputs, once for each folder of files: a new run over a million files finds none."""

    def __init__(self, work: Work[Any]) -> None:
        """Takes the work on each file."""
        self._work = work
        self._known: dict[str, bool] = {}

    def exist_for(self, file: TaskFile) -> bool:
        """Returns whether there may be an output of a file."""
        parent = file.relative.rpartition("/")[0]
        if parent not in self._known:
            self._known[parent] = any(path.parent.exists() for path in self._work.evidence(file)[1:])
        return self._known[parent]
