"""Large files in parts, so that the last worker does not work on one while the others are idle."""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mlfilter_core.files.task_files import TaskFile
from mlfilter_core.work.output_folders import OutputFolders
from mlfilter_core.work.workload import Work

# A file is divided if it is more than this share of a worker's work: as much may the last worker idle at the end.
MAX_IDLE_SHARE = 0.05
# Tasks per worker that a file would make if all that is left were divided like it. Parts become smaller towards the
# end, where they balance the workers; early ones would only cost the reading of what precedes them.
TASKS_PER_WORKER = 3
# Arbitrary: a second of work on a GPU, minutes on two cores.
MIN_PART_BYTES = 4 << 20


class Tasks(Collection[TaskFile]):
    """The files of a run in order, each whole or as its parts."""

    def __init__(self, files: Sequence[TaskFile], parts: Mapping[int, Sequence[TaskFile]] = {}) -> None:
        """Takes the files, and the parts of those that are divided, by their place."""
        self._files = files
        self._parts = dict(parts)
        self._sizes = np.fromiter((file.size() for file in files), np.int64, len(files))

    @property
    def n_bytes(self) -> int:
        """Bytes of all files."""
        return int(self._sizes.sum())

    def files(self) -> Iterator[tuple[int, int, TaskFile]]:
        """Yields the place of each file, its bytes, and the file."""
        return zip(range(len(self._files)), self._sizes.tolist(), self._files, strict=True)

    def divide(self, place: int, parts: Sequence[TaskFile]) -> None:
        """Replaces the file at a place by its parts."""
        self._parts[place] = parts

    def __len__(self) -> int:
        return len(self._files) + sum(len(parts) - 1 for parts in self._parts.values())

    def __iter__(self) -> Iterator[TaskFile]:
        for place, file in enumerate(self._files):
            yield from self._parts.get(place, (file,))

    def with_sizes(self) -> Iterator[tuple[TaskFile, int]]:
        """Yields each task, with its bytes."""
        for place, size, file in self.files():
            if place in self._parts:
                yield from ((part, part.size()) for part in self._parts[place])
            else:
                yield file, size

    def parts(self) -> Iterator[TaskFile]:
        """Yields the tasks that are parts of files."""
        for parts in self._parts.values():
            yield from parts

    def __contains__(self, task: object) -> bool:
        return any(task == other for other in self)


def divide(files: Sequence[TaskFile], work: Work[Any], n_workers: int) -> Tasks:
    """Returns the files in order, each whole or as its parts.

    Args:
        files: Files to do.
        work: Work on each.
        n_workers: Most workers of the run.
    """
    tasks, folders = Tasks(files), OutputFolders(work)
    left = tasks.n_bytes
    enough = MAX_IDLE_SHARE * left / n_workers
    for place, size, file in tasks.files():
        n_parts = 1
        if n_workers > 1 and size > enough:
            n_parts = min(math.ceil(size * TASKS_PER_WORKER * n_workers / left), size // MIN_PART_BYTES)
        # An earlier run may have divided a file, too.
        may_be_divided = n_parts > 1 or work.divides_all or folders.exist_for(file)
        if may_be_divided and len(divided := work.divide(file, max(1, n_parts))) > 1:
            tasks.divide(place, divided)
        left -= size
    return tasks
