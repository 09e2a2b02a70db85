"""The annotation pipeline: one Prefect task for each file of embeddings."""

if __name__ == "__main__":
    # Before the imports below, for the reasons in flows/embed.py.
    from flows.commands.cli import annotate_script

    annotate_script()
    raise SystemExit

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefect import flow

from flows.prefect_api.failures import expected_errors_as_states
from flows.prefect_api.left_running import never_left_running
from flows.running.report import RunReport
from flows.running.run_files import check_job, file_task, run_job
from mlfilter_core.annotating.annotate_report import AnnotateReport
from mlfilter_core.annotating.work import AnnotateWork, annotation_workload, load_heads
from mlfilter_core.config.annotation import AnnotationJob
from mlfilter_core.config.job_files import load_job
from mlfilter_core.files.task_files import TaskFile
from mlfilter_core.work.workload import run_in_turn


@flow(name="annotate", validate_parameters=False)
@never_left_running()
@expected_errors_as_states
def annotate(config: Path | AnnotationJob, overrides: Mapping[str, Any] = {}) -> RunReport:
    """Scores embeddings: one annotated JSONL file for each HDF5 file.

    Args:
        config: Path of a YAML job file on the machine that runs the flow, or the whole job.
        overrides: Values that replace those of `config`, by dotted name: `{"params.batch_size": 512}`.

    Raises:
        JobError: The job cannot run as it is configured.
        FilesFailedError: Some files failed; the others are finished.
    """
    return run_job(annotate_files, annotation_workload, load_job(config, AnnotationJob, overrides))


@file_task("annotate")
def annotate_files(files: tuple[TaskFile, ...], work: AnnotateWork) -> list[AnnotateReport]:
    """Scores one file after another, on a worker."""
    return run_in_turn(work, files)


def check_annotation_job(config: Path | AnnotationJob, overrides: Mapping[str, Any], heads_exist: bool) -> None:
    """Checks all of an annotation job that can be checked before there are embeddings, and heads or not.

    Raises:
        JobError: The job could not run.
    """
    job = load_job(config, AnnotationJob, overrides)
    check_job(job)
    if heads_exist:
        load_heads(job.params)
