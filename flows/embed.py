"""The embedding pipeline: one Prefect task for each source file."""

if __name__ == "__main__":
    # Before the imports below: --help then needs no Prefect, Prefect's home can be chosen, and the tasks
    # travel to the workers as those of the module `flows.embed`, not of `__main__`.
    from flows.cli import embed_script

    embed_script()
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
from mlfilter_core.config.embedding import EmbeddingJob
from mlfilter_core.corpus import CorpusFile
from mlfilter_core.embed_file import EmbedReport
from mlfilter_core.embed_work import EmbedWork, embedding_workload
from mlfilter_core.job_files import load_job
from mlfilter_core.publishing import remove_leftovers
from mlfilter_core.work import run_in_turn


@flow(name="embed", validate_parameters=False)
@never_left_running()
@expected_errors_as_states
def embed(config: Path | EmbeddingJob, overrides: Mapping[str, Any] = {}) -> RunReport:
    """Embeds a corpus: one HDF5 file for each JSONL file.

    Args:
        config: Path of a YAML job file on the machine that runs the flow, or the whole job.
        overrides: Values that replace those of `config`, by dotted name: `{"params.batch_size": 128}`.

    Raises:
        JobError: The job cannot run as it is configured.
        FilesFailedError: Some files failed; the others are finished.
    """
    started = time.monotonic()
    job = load_job(config, EmbeddingJob, overrides)
    check_job(job)
    remove_leftovers(job.params.output_dir)
    logs = job.logging_dir / f"embed-{flow_run.get_name()}"
    with logging_to(logs, "flow", APILogHandler()):
        return run_files(embed_files, embedding_workload(job), job=job, logs=logs, started=started)


@task(
    name="embed",
    task_run_name=named_by_file("embed"),
    retries=RETRIES,
    retry_delay_seconds=exponential_backoff(2),
    retry_jitter_factor=0.5,
    retry_condition_fn=can_heal,
)
def embed_files(files: tuple[CorpusFile, ...], work: EmbedWork) -> list[EmbedReport]:
    """Embeds one file after another, on a worker."""
    return run_in_turn(work, files)
