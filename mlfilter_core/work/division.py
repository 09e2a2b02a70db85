"""Large files in parts, so that the last worker does not work on one while the others are idle."""

import math
from collections.abc import Sequence
from typing import Any

from mlfilter_core.files.task_files import TaskFile
from mlfilter_core.work.workload import Work

# A file is divided if it is more than this share of a worker's work: as much may the last worker idle at the end.
MAX_IDLE_SHARE = 0.05
# Tasks per worker that a file would make if all that is left were divided like it. Parts become smaller towards the
# end, where they balance the workers; early ones would only cost the reading of what precedes them.
TASKS_PER_WORKER = 3
# Arbitrary: a second of work on a GPU, minutes on two cores.
MIN_PART_BYTES = 4 << 20


def divide(files: Sequence[TaskFile], work: Work[Any], n_workers: int) -> list[TaskFile]:
    """Returns the files in order, each whole or as its parts.

    Args:
        files: Files to do.
        work: Work on each.
        n_workers: Most workers of the run.
    """
    tasks: list[TaskFile] = []
    sizes = [file.size() for file in files]
    left = sum(sizes)
    enough = MAX_IDLE_SHARE * left / n_workers
    for file, size in zip(files, sizes, strict=True):
        n_parts = 1
        if n_workers > 1 and size > enough:
            n_parts = min(math.ceil(size * TASKS_PER_WORKER * n_workers / left), size // MIN_PART_BYTES)
        tasks += work.divide(file, max(1, n_parts)) or [file]
        left -= size
    return tasks
