"""The filter flow: a first Prefect task surveys each annotated file, a second one filters it."""

if __name__ == "__main__":
    # Before the imports below, for the reasons in flows/embed.py.
    from flows.running.script import run_script

    run_script("filter")
    raise SystemExit

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefect import flow

from flows.prefect_api.failures import expected_errors_as_states
from flows.prefect_api.left_running import never_left_running
from flows.running.report import RunReport
from flows.running.run_files import run_job
from flows.workers.local import workers_kept
from mlfilter_core.config.filtering import FilterJob
from mlfilter_core.config.job_files import load_job
from mlfilter_core.filtering.work import filter_workload, survey_workload


@flow(name="filter", validate_parameters=False)
@never_left_running()
@expected_errors_as_states
@workers_kept()
def filter(config: Path | FilterJob, overrides: Mapping[str, Any] = {}, dry_run: bool = False) -> RunReport:
    """Keeps the best documents of annotated files: one file of documents for each.

    Args:
        config: Path of a YAML job file on the machine that runs the flow, or the whole job.
        overrides: Values that replace those of `config`, by dotted name: `{"params.write_dropped": true}`.
        dry_run: Whether to end after the survey of the scores, as `ml_filter filter --dry-run` does.

    Raises:
        JobError: The job cannot run as it is configured.
        FilesFailedError: Some files failed; the others are finished.
    """
    job = load_job(config, FilterJob, overrides)
    surveyed = run_job("survey", survey_workload, job)  # all files: the limits are those of the whole corpus
    return surveyed if dry_run else run_job("filter", filter_workload, job)
