"""The course of a run, the same for every kind of job: skip finished files, process the others, report."""

import functools
import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from prefect import Task
from prefect.logging.handlers import APILogHandler
from prefect.runtime import flow_run
from prefect.tasks import exponential_backoff

from flows.prefect_api.database_disk import DatabaseError
from flows.prefect_api.failures import RETRIES, can_heal
from flows.running.bundles import Bundle, Bundles
from flows.running.fan_out import Outcome, fan_out
from flows.running.joins import Joins
from flows.running.report import (
    FilesFailedError,
    Page,
    RunReport,
    failed_row,
    make_page,
    page_modules_loading,
    publish_report,
    write_rows,
)
from flows.running.stopping import instead_of_prefect, silence
from flows.running.takeover import LocatedWorkers, TakingOver
from flows.watching.dashboard_link import link_dashboard
from flows.watching.logs import PROGRESS, logging_to, thinned
from flows.watching.metrics import check_port
from flows.watching.run_progress import RunProgress
from flows.watching.watching import watching
from flows.workers.local import local_workers
from flows.workers.task_runner import WorkerLostError
from flows.workers.worker_count import most_workers
from mlfilter_core.config.execution import Job
from mlfilter_core.errors import JobError, MlfilterError
from mlfilter_core.files.claims import has_locks, why_locks_are_local
from mlfilter_core.files.publishing import check_writable, remove_leftovers
from mlfilter_core.files.task_files import WHOLE, chosen, place_of
from mlfilter_core.files.urls import url_of
from mlfilter_core.run_report.known_outputs import DEFAULT_GROUP
from mlfilter_core.run_report.stating_work import stating
from mlfilter_core.wording import count, duration, plural
from mlfilter_core.work.division import Tasks, divide
from mlfilter_core.work.failures import RepeatedFailures
from mlfilter_core.work.finished_files import FinishedFiles
from mlfilter_core.work.look_up import LookUp
from mlfilter_core.work.run_log import RunLog, run_log
from mlfilter_core.work.stored_reports import StoredReports
from mlfilter_core.work.workload import (
    FileReport,
    Report,
    SomeFilesFailedError,
    Work,
    Workload,
    name_of,
    row_of,
    run_files,
)

_log, _progress = logging.getLogger(__name__), logging.getLogger(PROGRESS)

StartWorkers = Callable[[int, Path], AbstractContextManager[LocatedWorkers]]


def run_job(verb: str, workload_of: Callable[[Any], Workload[Report]], job: Job) -> RunReport:
    """Runs a job within its flow: checks, logs, files, report.

    Args:
        verb: Name of the tasks; the UI shows it before the file's name.
        workload_of: Returns the workload of the job.
        job: The job.

    Raises:
        JobError: The job cannot run as it is configured, finished files have other settings, or a task met an error
            that would occur for every file.
        FilesFailedError: Some files failed; the others are finished.
        DatabaseError: The run's own Prefect server cannot write to its database.
    """
    started = time.monotonic()
    check_writable(job.logging_dir, f"{job.settings_name}.logging_dir")
    logs = job.logging_dir / f"{flow_run.get_flow_name()}-{flow_run.get_name()}"
    with instead_of_prefect(), logging_to(logs, "flow", APILogHandler()):
        check_job(job)
        remove_leftovers(job.output_dir)
        try:
            return _run_files(_file_task(verb), workload_of(job), job, logs, started)
        except DatabaseError:
            silence()  # Prefect's engine would log that it cannot report the error, with a traceback
            raise


def _run_files(
    file_task: Task[Any, list[Report]], workload: Workload[Report], job: Job, logs: Path, started: float
) -> RunReport:
    """Runs a task for each file that is not finished; small files share one. A failed file does not stop the others."""
    files, work = workload.files, workload.work
    with FinishedFiles(workload) as finished:
        found = _look_up(workload, finished)
        reports, failures, to_do = found.reports, found.failures, chosen(files, found.to_do)
        _progress.info("%s: %s", workload.flow, _found(len(to_do), len(reports), len(failures)))
        on_nodes: list[str] = []
        with run_log(logs, workload.flow, job.params.output_dir, job, len(files), len(reports)) as record:
            if to_do:
                work.prepare(files)
                tasks = divide(to_do, work, most_workers_of(job))
                loading = nullcontext() if workload.is_step else page_modules_loading(job.logging_dir)
                with loading, work.session(to_do):
                    on_nodes = _do_files(file_task, workload, job, tasks, record, finished, reports, failures)
            if not failures and (to_do or not work.is_concluded()):
                work.conclude()
            seconds = time.monotonic() - started
            run = RunReport(
                *(workload.flow, workload.output_dir, logs, seconds, reports, failures, workload.is_step),
                on_nodes=on_nodes,
            )
            write_rows(run)  # before the record says that the run has ended well
            record.end(run.seconds, len(failures))
    page = make_page(workload.flow, job.params.output_dir, job.logging_dir) if _has_page(workload, job) else Page()
    run = replace(run, page=page.path)
    publish_report(run, page.pictures, page.summary)
    if failures:
        raise FilesFailedError(run)
    return run


def _look_up(workload: Workload[Report], finished: FinishedFiles[Report]) -> LookUp[Report]:
    """Looks up all files.

    Raises:
        OtherSettingsError: Finished files have other settings.
    """
    found = LookUp(workload, finished)
    for place in range(len(workload.files)):
        try:
            found.add(place)
        except OSError:  # the task tries again and reports the error
            found.to_do.append(place)
        if found.is_in_vain:
            break
    found.check()
    return found


def _do_files(
    file_task: Task[Any, list[Report]],
    workload: Workload[Report],
    job: Job,
    tasks: Tasks,
    record: RunLog,
    finished: FinishedFiles[Report],
    reports: StoredReports[Report],
    failures: dict[str, str],
) -> list[str]:
    """Runs the tasks of files and parts of files; adds the result of each file to `reports` or `failures`.

    Returns:
        Remarks on the nodes of the workers.
    """
    n_files = len(workload.files)
    joined: set[str] = set()  # or finished at once, by another of their parts
    bundles, joins = Bundles(tasks, job.files_per_task, _log.debug), Joins(tasks.parts())
    progress, repeated = RunProgress(n_files, tasks, len(failures)), RepeatedFailures()
    watched = watching(progress, workload.flow, job.metrics_port, workload.files[0].folder, job.params.output_dir)
    with (
        watched,
        _stating(workload, job) as (work, remember),
        workers_of(job)(len(tasks), record.folder) as workers,
        thinned(len(tasks), workers.runner.ui) as level,
    ):
        workers.runner.on_progress = progress.hear
        link_dashboard(workers.runner.client.dashboard_link, workload.flow)
        taking_over = TakingOver(workers, progress.stragglers)
        for outcome in fan_out(taking_over, file_task, bundles, {"work": work}, progress.have_workers):
            if isinstance(outcome.error, JobError):
                raise outcome.error
            if isinstance(outcome.error, WorkerLostError | OSError) and len(outcome.item) > 1:
                _log.warning("%s; %d files are tried again, one by one", outcome.error, len(outcome.item))
                bundles.separate(outcome.item)
                continue
            done = _by_name(outcome)
            for file in outcome.item:
                result = done[file.name]
                if file.relative in failures or file.relative in joined:  # by another of its parts
                    continue
                if isinstance(result, str):
                    failures[file.relative] = result
                    bundles.drop_parts(file)
                    progress.fail(file.name)
                    record.add(failed_row(file.relative, result))
                    if line := repeated.describe(file.name, result):
                        _log.error("%s", line)
                    continue
                bundles.learn(file, result)
                if file.part != WHOLE and name_of(result) == file.name:
                    progress.finish_part(file.name, result)
                    if (whole := joins.add(file, result)) is not None:
                        bundles.add(whole)
                    continue
                bundles.drop_parts(file)
                result = joins.report(file, result)
                if joins.is_divided(file):
                    joined.add(file.relative)
                finished.add(file, result)
                remember(result)
                reports.add(place_of(workload.files, file), replace(result, versions=(), stated=()))
                progress.finish(file.name, result)
                record.add(row_of(result))
                _progress.log(
                    level,
                    "%s: %s %s, %s documents in %s (%d of %d files)",
                    *(workload.flow, file.relative, result.status, count(result.documents)),
                    *(duration(result.seconds), len(reports) + len(failures), n_files),
                )
        return workers.remarks()


def _has_page(workload: Workload[Report], job: Job) -> bool:
    """Returns whether a run ends with the page about its outputs, which must be on this machine."""
    return not workload.is_step and "output_dir" not in job.urls


def _stating(
    workload: Workload[Report], job: Job
) -> AbstractContextManager[tuple[Work[Report], Callable[[FileReport], None]]]:
    """Gives the work of a run, which states what it makes if the page needs that, and what remembers it."""
    n_files = len(workload.files) if _has_page(workload, job) else 0
    group = getattr(job.params, "hdf5_dataset_name", DEFAULT_GROUP)
    return stating(workload.work, job.params.output_dir, group, n_files)


def _found(n_to_do: int, n_finished: int, n_refused: int) -> str:
    """Returns what a run found: `3 files to do, 2 finished before (skipped)`."""
    parts = [f"{plural(n_to_do, 'file')} to do"]
    parts += [f"{n:,} {state}" for n, state in ((n_finished, "finished before (skipped)"), (n_refused, "refused")) if n]
    return ", ".join(parts)


def _file_task(verb: str) -> Task[Any, list[Any]]:
    """Returns the Prefect task that processes files one after another on a worker."""
    return Task(
        run_files,
        name=verb,
        task_run_name=named_by_file(verb),
        retries=RETRIES,
        retry_delay_seconds=exponential_backoff(2),
        retry_jitter_factor=0.5,
        retry_condition_fn=can_heal,
    )


def check_job(job: Job) -> None:
    """Checks, before any work, that a job can write its outputs and logs.

    Raises:
        ConfigError: A folder for its outputs or logs cannot be written to.
    """
    check_writable(job.output_dir)
    check_writable(job.logging_dir, f"{job.settings_name}.logging_dir")
    check_port(job.metrics_port)
    if not has_locks(job.output_dir):
        _log.warning("the file system of %s has no locks; start one run at a time on it", job.output_dir)
    elif job.running_on_slurm and (why_local := why_locks_are_local(job.output_dir)):
        _log.warning(
            "locks in %s do not reach other machines: %s; start one run at a time on it", job.output_dir, why_local
        )


def workers_of(job: Job) -> StartWorkers:
    """Returns the function that starts the workers that a job asks for."""
    if job.running_on_slurm:
        from flows.workers.slurm import slurm_workers  # dask_jobqueue writes to the user's home when it is imported

        return functools.partial(slurm_workers, job.slurm, job.one_per_core, job.device)
    return functools.partial(local_workers, job.local, job.one_per_core, job.device)


def most_workers_of(job: Job) -> int:
    """Returns the most workers that a job has at a time."""
    if not job.running_on_slurm:
        return most_workers(job.local, job.one_per_core)
    from flows.workers.slurm_job import workers_per_job

    return job.slurm.max_jobs * workers_per_job(job.slurm, job.one_per_core, job.device)


def named_by_file(flow: str) -> Any:
    """Returns the function that names task runs in the UI, after their file or the first of several."""

    def name(parameters: dict[str, Any]) -> str:
        files = parameters["files"]
        return f"{flow} {files[0].name}" + (f" and {len(files) - 1} more" if len(files) > 1 else "")

    return name


def _by_name(outcome: Outcome[Bundle, list[Report]]) -> dict[str, Report | str]:
    """Returns the report of each file or part of a task, or the reason why it is not finished."""
    error, reports = outcome.error, outcome.result or []
    failures: dict[str, str] = {}
    if isinstance(error, SomeFilesFailedError):
        reports, failures = list(error.reports), dict(error.failures)
    elif error is not None:
        reason = str(error) if isinstance(error, MlfilterError) else f"{type(error).__name__}: {error}"
        failures = {file.name: reason for file in outcome.item}
    finished = [file.name for file in outcome.item if file.name not in failures]
    done: dict[str, Report | str] = {**failures, **dict.fromkeys(finished, "its task ended without a report of it")}
    files = {file.name: file for file in outcome.item}
    for name, report in zip(finished, reports, strict=False):
        # Another run may have joined a part meanwhile; a part that is missing is made when the file is joined.
        is_there = files[name].part != WHOLE or url_of(report.output) is not None or Path(report.output).exists()
        done[name] = report if is_there else f"its task ended, but {report.output} does not exist"
    return done
