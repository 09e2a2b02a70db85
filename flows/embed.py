"""The embedding pipeline: one Prefect task for each source file."""

if __name__ == "__main__":
    # Before the imports below: --help then needs no Prefect, Prefect's home can be chosen, and the tasks
    # travel to the workers as those of the module `flows.embed`, not of `__main__`.
    from flows.commands.cli import embed_script

    embed_script()
    raise SystemExit

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefect import flow

from flows.prefect_api.failures import expected_errors_as_states
from flows.prefect_api.left_running import never_left_running
from flows.running.report import RunReport
from flows.running.run_files import file_task, run_job
from mlfilter_core.config.embedding import EmbeddingJob
from mlfilter_core.config.job_files import load_job
from mlfilter_core.embedding.embed_report import EmbedReport
from mlfilter_core.embedding.work import EmbedWork, embedding_workload
from mlfilter_core.files.task_files import TaskFile
from mlfilter_core.work.workload import run_in_turn


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
    return run_job(embed_files, embedding_workload, load_job(config, EmbeddingJob, overrides))


@file_task("embed")
def embed_files(files: tuple[TaskFile, ...], work: EmbedWork) -> list[EmbedReport]:
    """Embeds one file after another, on a worker."""
    return run_in_turn(work, files)
