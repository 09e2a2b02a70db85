"""Surveys loaded by a few threads, ahead of the one that counts them.

So reading, its checksums and the latency of a network file system overlap with counting. Memory holds a few surveys,
however many there are.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Lock

from mlfilter_core.files.task_files import TaskFile
from mlfilter_core.filtering.survey import Survey

N_THREADS = 4  # more than cores, since they wait for disks; each holds a survey, which may be large
# Loaded in a row, so that tiny files do not wait for threads. Both arbitrary.
BATCH_DOCUMENTS, BATCH_FILES = 1 << 18, 1000


def loaded_ahead(files: Iterable[TaskFile], load: Callable[[TaskFile], Survey]) -> Iterator[Survey]:
    """Yields the survey of each file, in any order.

    Raises:
        What `load` raises.
    """
    remaining, lock = iter(files), Lock()

    def next_surveys() -> list[Survey]:
        """Returns some of the remaining ones, none if there are none."""
        surveys: list[Survey] = []
        n_documents = 0
        while n_documents < BATCH_DOCUMENTS and len(surveys) < BATCH_FILES:
            with lock:
                file = next(remaining, None)
            if file is None:
                break
            surveys.append(load(file))
            n_documents += len(surveys[-1])
        return surveys

    with ThreadPoolExecutor(N_THREADS, "surveys") as pool:
        batches = deque(pool.submit(next_surveys) for _ in range(N_THREADS))
        while batches:  # to the last: a batch may be empty before one that is not
            if surveys := batches.popleft().result():
                batches.append(pool.submit(next_surveys))
                yield from surveys
