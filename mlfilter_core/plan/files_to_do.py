"""Which files of a job are finished, which are left, and which outputs are in the way."""

from collections.abc import Sequence
from dataclasses import dataclass

from mlfilter_core.config.execution import Job
from mlfilter_core.errors import FileError, MlfilterError
from mlfilter_core.files.task_files import TaskFile
from mlfilter_core.plan.findings import Findings
from mlfilter_core.workloads import workload_of

N_SHOWN = 3


@dataclass(frozen=True)
class FilesToDo:
    """The files of a job.

    Attributes:
        files: That are left to do.
        n_finished: Others.
    """

    files: Sequence[TaskFile]
    n_finished: int


def find_files_to_do(job: Job, files: Sequence[TaskFile], findings: Findings) -> FilesToDo:
    """Asks the job's work about each of its files, as a run does.

    Args:
        job: The job.
        files: Those that are there, for a job that cannot tell what it is to do.
        findings: Takes what stands in the way.
    """
    try:
        workload = workload_of(job)
    except MlfilterError as error:
        findings.add_problem(str(error))
        return FilesToDo(files, 0)
    to_do: list[TaskFile] = []
    in_the_way: list[str] = []
    n_finished = 0
    for file in workload.files:
        try:
            is_finished = workload.work.finished(file, read_content=False) is not None
        except FileError as error:
            in_the_way.append(str(error))
            to_do.append(file)
            continue
        except OSError:  # what is wrong is said when it is read
            is_finished = False
        if is_finished:
            n_finished += 1
        else:
            to_do.append(file)
    for problem in in_the_way[:N_SHOWN]:
        findings.add_problem(problem)
    if len(in_the_way) > N_SHOWN:
        findings.add_problem(f"and {len(in_the_way) - N_SHOWN:,} more files are in the way like these")
    return FilesToDo(to_do, n_finished)
