"""Which files of a job are finished, which are to do, and which outputs are of other requests."""

from array import array
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from mlfilter_core.config.annotation import AnnotationJob
from mlfilter_core.config.embedding import EmbeddingJob
from mlfilter_core.errors import FileError
from mlfilter_core.files.task_files import TaskFile, TaskFiles, chosen, shard
from mlfilter_core.plan.findings import Findings
from mlfilter_core.work.division import divide
from mlfilter_core.work.finished_files import FinishedFiles
from mlfilter_core.work.workload import Work, Workload

N_SHOWN = 3


@dataclass(frozen=True)
class Division:
    """The tasks that workers share.

    Attributes:
        n_tasks: Their number: files, and parts of large ones.
        largest_share: Share of the largest task in the bytes of all.
        largest: Name of its file or part.
    """

    n_tasks: int
    largest_share: float
    largest: str


@dataclass(frozen=True)
class FilesToDo:
    """The files of a job.

    Attributes:
        found: All of them, sorted by name.
        to_do: Files that are not finished.
        work: Work on each; None where it is unknown.
    """

    found: Sequence[TaskFile]
    to_do: Sequence[TaskFile]
    work: Work[Any] | None = None

    @property
    def n_finished(self) -> int:
        return len(self.found) - len(self.to_do)

    def divided(self, n_workers: int) -> Division:
        """Returns the tasks that this number of workers would share."""
        tasks: Collection[TaskFile] = self.to_do
        with suppress(OSError):  # of an output folder that cannot be read, which is a problem of its own
            tasks = self.to_do if self.work is None else divide(self.to_do, self.work, n_workers)
        largest = max(tasks, key=TaskFile.size)
        return Division(len(tasks), largest.size() / max(1, sum(task.size() for task in tasks)), largest.name)

    def __str__(self) -> str:
        return f"{len(self.found):,} found, {self.n_finished:,} finished, {len(self.to_do):,} to do"


def find_files_to_do(
    job: EmbeddingJob | AnnotationJob,
    workload_of: Callable[[Any], Workload[Any]],
    find: Callable[[], TaskFiles],
    findings: Findings,
) -> FilesToDo:
    """Returns the files of a job; if it is unknown which of them are finished, all are to do.

    Args:
        job: The job.
        workload_of: Returns the workload of the job.
        find: Returns the files that the job reads, of all shards.
        findings: Receives missing files, a workload that cannot be made, and outputs of other requests.
    """
    found: Sequence[TaskFile] = []
    with findings.noting():
        found = shard(find(), job.local.ranks, job.local.tasks)
    with findings.noting():  # the files exist even where the model or a head does not
        return leave_out_finished(workload_of(job), findings)
    return FilesToDo(found, found)


def leave_out_finished(workload: Workload[Any], findings: Findings) -> FilesToDo:
    """Returns the files of a workload; notes existing outputs of other requests."""
    places = array("q")
    in_the_way: list[str] = []
    with FinishedFiles(workload, remembers=False) as known:
        for place, file in enumerate(workload.files):
            try:
                if known.find(file) is not None:
                    continue
            except FileError as error:
                in_the_way.append(str(error))
            except OSError:
                pass  # reading the file reports it
            places.append(place)
    for problem in in_the_way[:N_SHOWN]:
        findings.add_problem(problem)
    if len(in_the_way) > N_SHOWN:
        findings.add_problem(f"{len(in_the_way) - N_SHOWN:,} more files fail in the same way")
    return FilesToDo(workload.files, chosen(workload.files, places), workload.work)
