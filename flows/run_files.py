"""The course of a run, the same for every pipeline: leave out what is finished, do the rest, report."""

import functools
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, TypeVar

from prefect import Task, get_run_logger

from flows.cluster import local_workers
from flows.fan_out import Outcome, Workers, fan_out
from flows.report import FilesFailedError, RunReport, publish_report
from mlfilter_core.annotate_file import AnnotateReport
from mlfilter_core.config import AnnotationJob, EmbeddingJob
from mlfilter_core.corpus import CorpusFile
from mlfilter_core.embed_file import EmbedReport
from mlfilter_core.errors import FileError, JobError, MlfilterError
from mlfilter_core.publishing import check_writable

Report = TypeVar("Report", EmbedReport, AnnotateReport)
Report_co = TypeVar("Report_co", EmbedReport, AnnotateReport, covariant=True)
StartWorkers = Callable[[int, Path], AbstractContextManager[Workers]]


class Work(Protocol[Report_co]):
    """What a job does with each of its files."""

    def finished(self, file: CorpusFile, read_content: bool) -> Report_co | None:
        """Returns the report of a finished file, None for one to do."""


def run_files(
    flow: str,
    task: Task[Any, Report],
    files: list[CorpusFile],
    *,
    work: Work[Report],
    job: EmbeddingJob | AnnotationJob,
    output_dir: Path,
    logs: Path,
    started: float,
) -> RunReport:
    """Runs a task for every file that is not finished; a file that fails does not stop the others.

    Args:
        flow: Name of the flow, for the report.
        task: Takes a file and the work, returns the file's report.
        files: All files of the run.
        work: The task's other parameter; also tells which files are finished.
        job: Says which workers are started, where there is something to do.
        output_dir: Where the outputs lie, for the report.
        logs: Folder of the run's logs.
        started: `time.monotonic()` at the start of the run.

    Raises:
        JobError: A task met an error that every file would meet; the run stops at once.
        FilesFailedError: Some files failed; the others are finished.
    """
    log = get_run_logger()
    reports: dict[str, Report] = {}
    failures: dict[str, str] = {}
    to_do: list[CorpusFile] = []
    for file in files:
        try:
            report = work.finished(file, read_content=False)
        except FileError as error:
            failures[file.relative] = str(error)
            continue
        except OSError:  # its task tries again, and reports
            report = None
        if report is None:
            to_do.append(file)
        else:
            reports[file.relative] = report
    log.info(
        "%d files: %d finished before, %d to do, %d in the way", len(files), len(reports), len(to_do), len(failures)
    )
    if to_do:
        with workers_of(job)(len(to_do), logs) as workers:
            for outcome in fan_out(workers, task, to_do, {"work": work}):
                name = outcome.item.relative
                if isinstance(outcome.error, JobError):
                    raise outcome.error
                reason = _reason(outcome)
                if outcome.result is None or reason:
                    failures[name] = reason
                    log.error("%s failed: %s", name, failures[name])
                else:
                    reports[name] = outcome.result
                    log.info("%s (%d of %d files)", name, len(reports) + len(failures), len(files))
    ordered = [reports[file.relative] for file in files if file.relative in reports]
    run = RunReport(flow, output_dir, logs, time.monotonic() - started, ordered, failures)
    publish_report(run)
    if failures:
        raise FilesFailedError(run)
    return run


def check_job(job: EmbeddingJob | AnnotationJob) -> None:
    """Checks, before any work, that a job can write here.

    Raises:
        ConfigError: A folder for its outputs or logs cannot be written to.
    """
    check_writable(job.params.output_dir)
    check_writable(job.logging_dir, f"{job.settings_name}.logging_dir")


def workers_of(job: EmbeddingJob | AnnotationJob) -> StartWorkers:
    """Returns what starts the workers that a job asks for."""
    if job.running_on_slurm:
        from flows.slurm import slurm_workers  # dask_jobqueue writes to the user's home when it is imported

        return functools.partial(slurm_workers, job.slurm, job.one_per_core, job.params.device)
    return functools.partial(local_workers, job.local, job.one_per_core, job.params.device)


def _reason(outcome: Outcome[CorpusFile, Report]) -> str:
    """Returns why a file is not finished; nothing where it is."""
    error, result = outcome.error, outcome.result
    if isinstance(error, MlfilterError):
        return str(error)
    if error is not None:
        return f"{type(error).__name__}: {error}"
    if result is None:
        return "the task returned nothing; see the workers' logs"
    if not Path(result.output).exists():
        return f"its task ended well, but {result.output} is not there"
    return ""
