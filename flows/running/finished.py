"""A run over files that are all finished: nothing is started for it, not even Prefect."""

import time

from flows.running.report import RunReport, write_rows
from mlfilter_core.config.execution import Job
from mlfilter_core.errors import MlfilterError
from mlfilter_core.job_kinds import workload_of


def finished_before(job: Job) -> RunReport | None:
    """Returns the report of a job of which every file is finished; None where there is something to do or to say."""
    started = time.monotonic()
    try:
        workload = workload_of(job)
        reports = []
        # The last first: in the order of a run, what is left to do is at the end.
        for file in reversed(workload.files):
            report = workload.work.finished(file, read_content=False)
            if report is None:
                return None
            reports.append(report)
    except (MlfilterError, OSError):  # the run will say so
        return None
    logs = job.logging_dir / f"{workload.flow}-finished-before"
    run = RunReport(workload.flow, workload.output_dir, logs, time.monotonic() - started, reports[::-1])
    write_rows(run)
    return run
