"""Which files may have outputs at all: those whose outputs would lie in folders that exist."""

from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
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


def without_input(folder: Path, suffixes: Sequence[str], inputs: Path, input_suffixes: Sequence[str]) -> Iterator[Path]:
    """Yields the outputs whose inputs are gone; readers of the folder still read them.

    Args:
        folder: Folder of the outputs.
        suffixes: Suffixes of the outputs.
        inputs: Folder of the inputs, which the outputs mirror.
        input_suffixes: Suffixes that an input may have.
    """
    for path in folder.glob("**/[!.]*"):
        relative = path.relative_to(folder).as_posix()
        if any(name.startswith(".") for name in PurePosixPath(relative).parts):  # parts of an unfinished file
            continue
        suffix = next((suffix for suffix in suffixes if relative.endswith(suffix)), None)
        if suffix is None or path.is_dir():  # a table of files may have such a name
            continue
        stem = relative.removesuffix(suffix)
        if not any((inputs / f"{stem}{each}").exists() for each in input_suffixes):
            yield path
