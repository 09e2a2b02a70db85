"""The filter: one Prefect task for each annotated file, after one that surveys it."""

if __name__ == "__main__":
    # Before the imports below, for the reasons in flows/embed.py.
    from flows.commands.cli import filter_script

    filter_script()
    raise SystemExit

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefect import flow

from flows.prefect_api.failures import expected_errors_as_states
from flows.prefect_api.left_running import never_left_running
from flows.running.report import RunReport
from flows.running.run_files import file_task, run_job
from mlfilter_core.config.filtering import FilterJob
from mlfilter_core.config.job_files import load_job
from mlfilter_core.files.task_files import TaskFile
from mlfilter_core.filtering.filter_file import FilterReport
from mlfilter_core.filtering.survey import SurveyReport
from mlfilter_core.filtering.work import FilterWork, SurveyWork, filter_workload, survey_workload
from mlfilter_core.work.workload import run_in_turn


@flow(name="filter", validate_parameters=False)
@never_left_running()
@expected_errors_as_states
def filter(config: Path | FilterJob, overrides: Mapping[str, Any] = {}, dry_run: bool = False) -> RunReport:
    """Keeps the best documents of annotated files: one file of documents for each.

    Args:
        config: Path of a YAML job file on the machine that runs the flow, or the whole job.
        overrides: Values that replace those of `config`, by dotted name: `{"params.write_dropped": true}`.
        dry_run: End after the survey of the scores, with which `ml_filter filter --dry-run` tells what would be kept.

    Raises:
        JobError: The job cannot run as it is configured.
        FilesFailedError: Some files failed; the others are finished.
    """
    job = load_job(config, FilterJob, overrides)
    surveyed = run_job(survey_files, survey_workload, job)  # of all files: limits are of the whole corpus
    return surveyed if dry_run else run_job(filter_files, filter_workload, job)


@file_task("survey")
def survey_files(files: tuple[TaskFile, ...], work: SurveyWork) -> list[SurveyReport]:
    """Surveys one file after another, on a worker."""
    return run_in_turn(work, files)


@file_task("filter")
def filter_files(files: tuple[TaskFile, ...], work: FilterWork) -> list[FilterReport]:
    """Filters one file after another, on a worker."""
    return run_in_turn(work, files)
