"""Groups files into tasks: one file per task, or several where files are small or very many."""

from collections import Counter, deque
from collections.abc import Callable
from typing import Literal

from mlfilter_core.files.task_files import WHOLE, TaskFile
from mlfilter_core.work.division import Tasks
from mlfilter_core.work.workload import FileReport

Bundle = tuple[TaskFile, ...]

# Between two tasks a worker waits for some 20 ms, and each task costs the flow and Prefect's server some 7 ms of CPU,
# for any number of workers (benchmarks/orchestration.py). The files of a bundle share forward passes, and the stages of
# embedding are idle in turn at its beginning and end. The constants are the shortest useful task and the highest useful
# rate of tasks.
MIN_TASK_S = 2.0
MAX_TASKS_PER_S = 10
# Arbitrary. A worker that dies loses its bundle, and people read the list of its files.
MAX_FILES = 500
# A task run takes 10 to 22 kB of Prefect's database (benchmarks/orchestration.py), and its UI lists them all.
MAX_TASKS = 100_000
# At the end of a run, each worker could get this many more bundles like the next, so that all workers end together.
BUNDLES_PER_WORKER = 2


class Bundles:
    """Files and parts of files to do, in the order of the corpus; whole files are bundled as they are taken."""

    def __init__(self, tasks: Tasks, files_per_task: int | Literal["auto"], say: Callable[[str], None]):
        """Takes the files and parts, how many of them share a task, and the function that writes to the run's log."""
        self._files = iter(tasks)
        self._n_left = len(tasks)  # without what was dropped
        self._parts_left = Counter(part.relative for part in tasks.parts())
        self._dropped: set[str] = set()
        self._next = self._following()
        self._again: deque[TaskFile] = deque()
        self._files_per_task = files_per_task
        self._n_least = -(-len(tasks) // MAX_TASKS)
        self._say = say
        self._n_last = self._n_least if files_per_task == "auto" else files_per_task
        self._seconds = 0.0
        self._bytes = 0

    def __len__(self) -> int:
        """Returns the approximate number of remaining tasks."""
        return len(self._again) + -(-self._n_left // self._n_last)

    def take(self, n_workers: int) -> Bundle:
        """Returns the files of the next task; empty when all are taken."""
        if self._again:
            return (self._again.popleft(),)
        bundle: list[TaskFile] = []
        seconds = 0.0
        while self._next and (not bundle or self._has_room(self._next, len(bundle), seconds, n_workers)):
            file = self._next
            bundle.append(file)
            self._n_left -= 1
            self._next = self._following()
            if file.part != WHOLE:
                self._parts_left[file.relative] -= 1
                return tuple(bundle)
            seconds += self._seconds_of(file)
        n = max(1, len(bundle))
        if self._files_per_task == "auto" and not self._n_last / 2 < n < self._n_last * 2:
            self._say(f"small files: about {n} of them share a task from now on")
            self._n_last = n
        return tuple(bundle)

    def learn(self, file: TaskFile, report: FileReport) -> None:
        """Records how long a file took, unless it was skipped."""
        if report.status != "skipped":
            self._seconds += report.seconds
            self._bytes += file.size()

    def add(self, file: TaskFile) -> None:
        """Adds a file whose parts are done, as the next task."""
        self._again.appendleft(file)

    def drop_parts(self, file: TaskFile) -> None:
        """Removes the other parts of a file, if this is one: the file failed, or is finished already."""
        if file.part == WHOLE:
            return
        self._n_left -= self._parts_left.pop(file.relative, 0)
        self._dropped.add(file.relative)
        if self._next is not None and self._next.relative in self._dropped:
            self._next = self._following()

    def separate(self, bundle: Bundle) -> None:
        """Puts back the files of a bundle whose worker died, each as a separate task: one of them is the cause."""
        self._again.extend(bundle)

    def _following(self) -> TaskFile | None:
        return next((file for file in self._files if file.relative not in self._dropped), None)

    def _has_room(self, following: TaskFile, n_files: int, seconds: float, n_workers: int) -> bool:
        if following.part != WHOLE:
            return False
        if self._files_per_task != "auto":
            return n_files < self._files_per_task
        n_left = self._n_left + n_files
        even = n_left // (BUNDLES_PER_WORKER * n_workers) if n_workers > 1 else n_left
        if n_files < min(self._n_least, even):
            return True
        enough_s = max(MIN_TASK_S, n_workers / MAX_TASKS_PER_S)
        is_short = self._bytes > 0 and seconds + self._seconds_of(following) <= enough_s
        return is_short and n_files < min(MAX_FILES, even)

    def _seconds_of(self, file: TaskFile) -> float:
        """Returns how long a file will take, as far as the finished ones tell."""
        return file.size() * self._seconds / max(1, self._bytes)
