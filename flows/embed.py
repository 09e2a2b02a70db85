"""The embedding flow: one Prefect task for each source file."""

if __name__ == "__main__":
    # Before the imports below: --help then needs no Prefect, Prefect's home can be chosen, and workers import the flow
    # as `flows.embed`, not as `__main__`.
    from flows.running.script import run_script

    run_script("embed")
    raise SystemExit

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefect import flow

from flows.prefect_api.failures import expected_errors_as_states
from flows.prefect_api.left_running import never_left_running
from flows.running.report import RunReport
from flows.running.run_files import run_job
from mlfilter_core.config.embedding import EmbeddingJob
from mlfilter_core.config.job_files import load_job
from mlfilter_core.embedding.work import embedding_workload


@flow(name="embed", validate_parameters=False)
@never_left_running()
@expected_errors_as_states
def embed(config: Path | EmbeddingJob, overrides: Mapping[str, Any] = {}) -> RunReport:
    """Embeds a corpus: one HDF5 file for each source file.

    Args:
        config: Path of a YAML job file on the machine that runs the flow, or the whole job.
        overrides: Values that replace those of `config`, by dotted name: `{"params.batch_size": 128}`.

    Raises:
        JobError: The job cannot run as it is configured.
        FilesFailedError: Some files failed; the others are finished.
    """
    return run_job("embed", embedding_workload, load_job(config, EmbeddingJob, overrides))
