"""The annotation flow: one Prefect task for each file of embeddings."""

if __name__ == "__main__":
    # Before the imports below: --help then needs no Prefect, Prefect's home can be chosen, and workers import the flow
    # as `flows.annotate`, not as `__main__`.
    from flows.running.script import run_script

    run_script("annotate")
    raise SystemExit

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefect import flow

from flows.prefect_api.failures import expected_errors_as_states
from flows.prefect_api.left_running import never_left_running
from flows.running.report import RunReport
from flows.running.run_files import run_job
from mlfilter_core.annotating.work import annotation_workload
from mlfilter_core.config.annotation import AnnotationJob
from mlfilter_core.config.job_files import load_job


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
    return run_job("annotate", annotation_workload, load_job(config, AnnotationJob, overrides))
