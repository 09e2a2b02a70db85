"""The annotation pipeline: one Prefect task for each file of embeddings."""

if __name__ == "__main__":
    # Before the imports below, for the reasons in flows/embed.py.
    from flows.cli import annotate_script

    annotate_script()
    raise SystemExit

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.logging.handlers import APILogHandler
from prefect.runtime import flow_run
from prefect.tasks import exponential_backoff

from flows.failures import RETRIES, can_heal, expected_errors_as_states
from flows.left_running import never_left_running
from flows.logs import logging_to
from flows.report import RunReport
from flows.run_files import check_job, named_by_file, run_files
from mlfilter_core.annotate_file import AnnotateReport
from mlfilter_core.annotate_work import AnnotateWork, annotation_workload, load_heads
from mlfilter_core.config.annotation import AnnotationJob
from mlfilter_core.corpus import CorpusFile
from mlfilter_core.job_files import load_job
from mlfilter_core.publishing import remove_leftovers
from mlfilter_core.work import run_in_turn


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
    started = time.monotonic()
    job = load_job(config, AnnotationJob, overrides)
    check_job(job)
    remove_leftovers(job.params.output_dir)
    logs = job.logging_dir / f"annotate-{flow_run.get_name()}"
    with logging_to(logs, "flow", APILogHandler()):
        return run_files(annotate_files, annotation_workload(job), job=job, logs=logs, started=started)


@task(
    name="annotate",
    task_run_name=named_by_file("annotate"),
    retries=RETRIES,
    retry_delay_seconds=exponential_backoff(2),
    retry_jitter_factor=0.5,
    retry_condition_fn=can_heal,
)
def annotate_files(files: tuple[CorpusFile, ...], work: AnnotateWork) -> list[AnnotateReport]:
    """Scores one file after another, on a worker."""
    return run_in_turn(work, files)


def check_annotation_job(config: Path | AnnotationJob, overrides: Mapping[str, Any] = {}) -> None:
    """Checks all of an annotation job that can be checked before there are embeddings.

    Raises:
        JobError: The job could not run.
    """
    job = load_job(config, AnnotationJob, overrides)
    check_job(job)
    load_heads(job.params)
