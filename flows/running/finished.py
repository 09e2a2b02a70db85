"""Runs over files that are all finished: they start nothing, not even Prefect."""

import time

from flows.running.report import RunReport, write_rows
from mlfilter_core.config.execution import Job
from mlfilter_core.errors import MlfilterError
from mlfilter_core.job_kinds import workload_of


def finished_before(job: Job) -> RunReport | None:
    """Returns the report of a job whose files are all finished; None if a file is left to do or an error to report."""
    started = time.monotonic()
    try:
        workload = workload_of(job)
        reports = []
        # From the end: a run works from the beginning, so files that are left to do are the last.
        for file in reversed(workload.files):
            report = workload.work.finished(file, read_content=False)
            if report is None:
                return None
            reports.append(report)
    except (MlfilterError, OSError):  # the run reports it
        return None
    logs = job.logging_dir / f"{workload.flow}-finished-before"
    run = RunReport(workload.flow, workload.output_dir, logs, time.monotonic() - started, reports[::-1])
    write_rows(run)
    return run
