"""The course of a run, the same for every pipeline: leave out what is finished, do the rest, report."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

from prefect import Task, get_run_logger
from prefect_dask import DaskTaskRunner

from flows.fan_out import fan_out
from flows.report import FilesFailedError, RunReport, publish_report
from mlfilter_core.annotate_file import AnnotateReport
from mlfilter_core.config import AnnotationJob, EmbeddingJob
from mlfilter_core.corpus import CorpusFile
from mlfilter_core.embed_file import EmbedReport
from mlfilter_core.errors import ConfigError, FileError, JobError, MlfilterError, OutputConflictError
from mlfilter_core.publishing import check_writable

Report = TypeVar("Report", EmbedReport, AnnotateReport)
Workers = Callable[[int, Path], AbstractContextManager[DaskTaskRunner]]


def run_files(
    flow: str,
    task: Task[Any, Report],
    files: list[CorpusFile],
    *,
    parameters: dict[str, Any],
    finished: Callable[[CorpusFile], Report | None],
    workers: Workers,
    output_dir: Path,
    logs: Path,
    started: float,
) -> RunReport:
    """Runs a task for every file that is not finished; a file that fails does not stop the others.

    Args:
        flow: Name of the flow, for the report.
        task: Takes a file and the parameters, returns the file's report.
        files: All files of the run.
        parameters: The task's other parameters.
        finished: Returns the report of a finished file, None for one to do.
        workers: Given the number of tasks and a folder, starts workers. Not called when nothing is to do.
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
            report = finished(file)
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
        with workers(len(to_do), logs / "dask") as runner:
            n_workers = len(runner.client.scheduler_info(n_workers=-1)["workers"])
            for outcome in fan_out(runner, task, to_do, parameters, n_workers):
                name = outcome.item.relative
                if isinstance(outcome.error, JobError):
                    raise outcome.error
                if outcome.error is not None or outcome.result is None:
                    failures[name] = _reason(outcome.error)
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


def unless_overwritten(finished: Callable[[], Report | None], overwrite: bool) -> Report | None:
    """Returns what `finished` returns; with `overwrite`, an output in the way is one to do."""
    try:
        return finished()
    except OutputConflictError:
        if overwrite:
            return None
        raise


def check_job(job: EmbeddingJob | AnnotationJob) -> None:
    """Checks, before any work, that a job can run and write here.

    Raises:
        ConfigError: It asks for Slurm, which this release parses and checks only, or a folder for its outputs
            or logs cannot be written to.
    """
    if job.running_on_slurm:
        raise ConfigError(
            "running_on_slurm: true is checked but not run by this release; set it to false and use local_settings "
            "inside a job of your own"
        )
    check_writable(job.params.output_dir)
    check_writable(job.logging_dir, "local_settings.logging_dir")


def _reason(error: Exception | None) -> str:
    if error is None:
        return "the task returned nothing; see the workers' logs"
    return str(error) if isinstance(error, MlfilterError) else f"{type(error).__name__}: {error}"
