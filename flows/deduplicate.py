"""The deduplication flow: rows in buckets, pairs, groups, then a Prefect task for the duplicates of each file."""

if __name__ == "__main__":
    # Before the imports below, for the reasons in flows/embed.py.
    from flows.running.script import run_script

    run_script("deduplicate")
    raise SystemExit

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefect import flow

from flows.prefect_api.failures import expected_errors_as_states
from flows.prefect_api.left_running import never_left_running
from flows.running.report import RunReport
from flows.running.run_files import run_job
from flows.workers.local import workers_kept
from mlfilter_core.config.deduplication import DeduplicationJob
from mlfilter_core.config.job_files import load_job
from mlfilter_core.deduplication.work import deduplicate_course, trial_of
from mlfilter_core.work.workload import Workload


@flow(name="deduplicate", validate_parameters=False)
@never_left_running()
@expected_errors_as_states
@workers_kept()
def deduplicate(config: Path | DeduplicationJob, overrides: Mapping[str, Any] = {}, dry_run: bool = False) -> RunReport:
    """Finds near-duplicates in a corpus, and writes the documents that are kept.

    Args:
        config: Path of a YAML job file on the machine that runs the flow, or the whole job.
        overrides: Values that replace those of `config`, by dotted name: `{"params.threshold": 0.95}`.
        dry_run: Whether to end after the search for pairs, as `ml_filter deduplicate --dry-run` does.

    Raises:
        JobError: The job cannot run as it is configured.
        FilesFailedError: Some files failed; the others are finished.
    """
    job = load_job(config, DeduplicationJob, overrides)
    steps = trial_of(job).steps()[:2] if dry_run else deduplicate_course(job)
    for workload in steps:
        report = run_job(workload.flow, functools.partial(_already_made, workload), job)
    return report


def _already_made(workload: Workload[Any], job: DeduplicationJob) -> Workload[Any]:
    return workload
