"""Training heads: one Prefect task for each head."""

if __name__ == "__main__":
    # Before the imports below, for the reasons in flows/embed.py.
    from flows.commands.cli import train_script

    train_script()
    raise SystemExit

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefect import flow

from flows.prefect_api.failures import expected_errors_as_states
from flows.prefect_api.left_running import never_left_running
from flows.running.report import RunReport
from flows.running.run_files import file_task, run_job
from mlfilter_core.config.job_files import load_job
from mlfilter_core.config.training import TrainingJob
from mlfilter_core.files.task_files import TaskFile
from mlfilter_core.training.train_request import TrainReport
from mlfilter_core.training.work import TrainWork, training_workload
from mlfilter_core.work.workload import run_in_turn


@flow(name="train_head", validate_parameters=False)
@never_left_running()
@expected_errors_as_states
def train_head(config: Path | TrainingJob, overrides: Mapping[str, Any] = {}) -> RunReport:
    """Trains heads on labelled embeddings: one safetensors file for each.

    Args:
        config: Path of a YAML job file on the machine that runs the flow, or the whole job.
        overrides: Values that replace those of `config`, by dotted name: `{"params.test_fraction": 0.1}`.

    Raises:
        JobError: The job cannot run as it is configured.
        FilesFailedError: Some heads failed; the others are finished.
    """
    return run_job(train_heads, training_workload, load_job(config, TrainingJob, overrides))


@file_task("train")
def train_heads(files: tuple[TaskFile, ...], work: TrainWork) -> list[TrainReport]:
    """Trains one head after another, on a worker."""
    return run_in_turn(work, files)
