"""The training flow: one Prefect task for each head."""

if __name__ == "__main__":
    # Before the imports below: --help then needs no Prefect, Prefect's home can be chosen, and workers import the flow
    # as `flows.train_head`, not as `__main__`.
    from flows.running.script import run_script

    run_script("train_head")
    raise SystemExit

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefect import flow

from flows.prefect_api.failures import expected_errors_as_states
from flows.prefect_api.left_running import never_left_running
from flows.running.report import RunReport
from flows.running.run_files import run_job
from mlfilter_core.config.job_files import load_job
from mlfilter_core.config.training import TrainingJob
from mlfilter_core.training.work import training_workload


@flow(name="train_head", validate_parameters=False)
@never_left_running()
@expected_errors_as_states
def train_head(config: Path | TrainingJob, overrides: Mapping[str, Any] = {}) -> RunReport:
    """Trains heads on labelled embeddings: one safetensors file for each head.

    Args:
        config: Path of a YAML job file on the machine that runs the flow, or the whole job.
        overrides: Values that replace those of `config`, by dotted name: `{"params.test_fraction": 0.1}`.

    Raises:
        JobError: The job cannot run as it is configured.
        FilesFailedError: Some heads failed; the others are finished.
    """
    return run_job("train", training_workload, load_job(config, TrainingJob, overrides))
