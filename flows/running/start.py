"""Job files to finished runs, with or without a Prefect server at hand."""

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.prefect_api.database_disk import usable_folder
from flows.prefect_api.proxies import reach_this_machine_directly
from flows.prefect_api.server import (
    ApiLostError,
    api_is_configured,
    is_of_api,
    keep_prefect_home_in,
    may_set_api,
    prefect_api,
    report_no_usage,
    server_ahead,
)
from flows.running.machine import check_semaphores
from flows.watching.terminal import Verbosity, log_on_terminal, verbosity
from mlfilter_core.config.execution import Job
from mlfilter_core.errors import ConfigError
from mlfilter_core.files.publishing import check_writable
from mlfilter_core.job_kinds import kind_of_flow, kind_of_job, kinds, load_entry_point, load_job_of_kind

if TYPE_CHECKING:
    from flows.running.finished import ToDo
    from flows.running.report import RunReport

PIPELINE = "flows.pipeline:pipeline"

# Called with the report of each run once it has ended.
_on_report: ContextVar[Callable[["RunReport"], None]] = ContextVar("on report", default=lambda report: None)


@contextmanager
def reporting_to(show: Callable[["RunReport"], None]) -> Iterator[None]:
    """Calls a function with the report of each run in the block once it has ended, also of one with failed files."""
    token = _on_report.set(show)
    try:
        yield
    finally:
        _on_report.reset(token)


def run_job_file(flow: str, config_file_path: Path, overrides: Mapping[str, Any] | None = None) -> "RunReport":
    """Runs the job of a file to its end.

    Args:
        flow: Name of its kind: `embed`, `train_head`, `annotate`, `filter`, or one that is registered.
        config_file_path: YAML job file.
        overrides: Values that replace those of the file, by dotted name: `{"params.batch_size": 128}`.

    Returns:
        What became of every file.

    Raises:
        JobError: The job cannot run as it is configured.
        FilesFailedError: Some files failed; the others are finished.
    """
    kind = kind_of_flow(flow)
    if kind is None:
        known = ", ".join(kind.flow for kind in kinds())
        raise ConfigError(f"there is no kind of job {flow}; the kinds are: {known}")
    return run_job(load_job_of_kind(config_file_path, kind, overrides or {}))


def run_job(job: Job, may_be_over: bool = True, **options: Any) -> "RunReport":
    """Runs a job to its end; results and errors as of `run_job_file`.

    Args:
        job: The job.
        may_be_over: Whether the flow need not be called where all files are finished.
        options: Further arguments of its flow, such as `dry_run` of a filter.
    """
    kind = kind_of_job(job)
    return _run(kind.run, lambda flow: [flow(job, **options)], job, may_be_over=may_be_over)[0]


def run_pipeline(steps: Mapping[str, tuple[Path, Mapping[str, Any]]]) -> "list[RunReport]":
    """Runs the jobs of several files one after another; ends after a job in which a file failed.

    All job files are read, once, before anything starts.

    Args:
        steps: Job file and overrides of each step: `{"embed": (Path("embed.yaml"), {}), "annotate": ...}`.

    Raises:
        ConfigError: A step does not exist, or is missing.
        JobError: A job cannot run as it is configured.
        FilesFailedError: Some files failed; the others are finished.
    """
    known = {kind.step: kind for kind in kinds() if kind.step is not None}
    if unknown := [step for step in steps if step not in known]:
        raise ConfigError(f"a pipeline has no step {unknown[0]}; its steps are: {', '.join(known)}")
    if missing := [step for step, kind in known.items() if step not in steps and not kind.is_optional_step]:
        raise ConfigError(f"a pipeline needs the step {missing[0]}; give its job file")
    configs: dict[str, Job] = {}
    for step, kind in known.items():
        if step in steps:
            path, overrides = steps[step]
            configs[f"{step}_config"] = load_job_of_kind(path, kind, overrides)
    return _run(PIPELINE, lambda flow: flow(**configs), *configs.values())


def _run(
    entry_point: str, call: "Callable[[Any], list[RunReport]]", *jobs: Job, may_be_over: bool = True
) -> "list[RunReport]":
    """Returns the reports of a flow that is called on jobs; starts nothing if a job is wrong or all is finished.

    Where `may_be_over` is false, the flow is called also where all is finished.

    A server starts while this process imports Prefect and the flow: it takes as long as they do.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):  # a worker imports the script once more
        raise ConfigError('call this below `if __name__ == "__main__":`; workers import the script that starts them')
    for job in jobs:
        if verbosity.get() is not Verbosity.QUIET:
            print(f"{kind_of_job(job).flow}: {job.about}", file=sys.stderr, flush=True)
    reach_this_machine_directly()
    from flows.running.finished import ToDo, finished_before, finished_later
    from flows.workers.worker_count import most_workers

    job, *later = jobs
    check_writable(job.output_dir)
    check_writable(job.logging_dir, f"{job.settings_name}.logging_dir")
    n_workers = 0
    if not job.running_on_slurm:
        check_semaphores()
        n_workers = most_workers(job.local, job.one_per_core)
    # The rounds before a run make what its files are compared with.
    first = finished_later(job) if kind_of_job(job).rounds else finished_before(job, max(1, n_workers))
    found = [first, *map(finished_later, later)]
    # Its database is for the processes of one machine: SQLite's log does not work across a network.
    folder = usable_folder(job.logging_dir / "prefect" / socket.gethostname())
    keep_prefect_home_in(folder)
    report_no_usage()
    ended: list[RunReport] = []
    for each in found:
        if isinstance(each, ToDo) or (ended and ended[-1].failures):
            break
        ended.append(each)
    is_over = (may_be_over and len(ended) == len(jobs)) or (ended and ended[-1].failures)
    if is_over and not (may_set_api(folder) and api_is_configured()):
        return _reported(ended)
    with server_ahead(folder) as server, _workers_ahead(job, first):
        flow = load_entry_point(entry_point)
        with prefect_api(folder, server), log_on_terminal():
            return _outliving_api(lambda: call(flow), len(jobs))


def _workers_ahead(job: Job, found: "RunReport | ToDo") -> AbstractContextManager[None]:
    """Starts the workers that the job will ask for, where this is known."""
    from flows.running.finished import ToDo

    if job.running_on_slurm or kind_of_job(job).rounds or not isinstance(found, ToDo) or not found.n_tasks:
        return nullcontext()
    from flows.workers.local import workers_ahead

    folder = job.logging_dir / f"dask-{socket.gethostname()}-{os.getpid()}"
    return workers_ahead(found.n_tasks, job.device, folder, found.imports)


def _reported(reports: "list[RunReport]") -> "list[RunReport]":
    """Writes the reports of runs that had nothing to do, and returns them.

    Raises:
        FilesFailedError: Some files failed; the others are finished.
    """
    from flows.running.report import FilesFailedError, write_rows

    for report in reports:
        write_rows(report)
        _on_report.get()(report)
        if report.failures:
            raise FilesFailedError(report)
    return reports


def _outliving_api(run: "Callable[[], list[RunReport]]", n_jobs: int) -> "list[RunReport]":
    """Returns the reports of a run, even if the API was lost before it recorded the end of the run.

    Raises:
        FilesFailedError: Some files failed; the others are finished.
        ApiLostError: The API was lost before all was done.
    """
    from flows.running.report import FilesFailedError, keeping_reports

    with keeping_reports(_on_report.get()) as reports:
        try:
            return run()
        except Exception as error:
            if not is_of_api(error):
                raise
            lost = ApiLostError(error)
    failed = next((report for report in reports if report.failures), None)
    if failed is None and len(reports) < n_jobs:
        raise lost
    print(f"warning: {lost}", file=sys.stderr)
    if failed is not None:
        raise FilesFailedError(failed)
    return reports
