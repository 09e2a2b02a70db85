"""The annotation pipeline: one Prefect task for each file of embeddings."""

if __name__ == "__main__":
    # Before the imports below, for the reasons in flows/embed.py.
    from flows.cli import annotate_script

    annotate_script()
    raise SystemExit

import functools
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import flow, task
from prefect.runtime import flow_run
from prefect.tasks import exponential_backoff

from flows.cluster import local_workers, n_cores
from flows.failures import RETRIES, can_heal, expected_errors_as_states
from flows.logs import logging_to, worker_name
from flows.report import RunReport
from flows.run_files import check_job, run_files, unless_overwritten
from mlfilter_core.annotate_file import (
    AnnotateReport,
    AnnotateRequest,
    annotate_file,
    encoder_weights,
    finished_annotation,
)
from mlfilter_core.config import AnnotationJob, AnnotationPipelineParameters, Scoring
from mlfilter_core.corpus import EMBEDDING_SUFFIXES, CorpusFile, find_files, shard
from mlfilter_core.embedding_store import EmbeddingFile
from mlfilter_core.errors import EmbeddingFileError
from mlfilter_core.job_files import load_job
from mlfilter_core.publishing import remove_leftovers

if TYPE_CHECKING:
    from mlfilter_core.heads import Head


@flow(name="annotate", validate_parameters=False)
@expected_errors_as_states
def annotate(config: Path, overrides: dict[str, Any] | None = None) -> RunReport:
    """Scores embeddings: one annotated JSONL file for each HDF5 file.

    Args:
        config: YAML job file, read on the machine that runs the flow.
        overrides: Values that replace those of the file, by dotted name: `{"params.batch_size": 512}`.

    Raises:
        JobError: The job cannot run as it is configured.
        FilesFailedError: Some files failed; the others are finished.
    """
    started = time.monotonic()
    job = load_job(Path(config), AnnotationJob, overrides)
    params = job.params
    check_job(job)
    remove_leftovers(params.output_dir)
    logs = job.logging_dir / f"annotate-{flow_run.get_name()}"
    with logging_to(logs, "flow"):
        files = find_files(params.embeddings_directory, params.glob_pattern, EMBEDDING_SUFFIXES)
        files = shard(files, job.local.ranks, job.local.tasks)
        heads = load_heads(params)
        check_heads(heads, files, params.hdf5_dataset_name)
        request = annotate_request(
            params, heads, params.annotated_output_dir, params.hdf5_dataset_name, params.source_dir
        )
        return run_files(
            "annotate",
            annotate_one,
            files,
            parameters={"params": params, "request": request, "logs": logs},
            finished=functools.partial(_finished, params, request, read_content=False),
            workers=functools.partial(local_workers, job.local, n_cores()),
            output_dir=params.annotated_output_dir,
            logs=logs,
            started=started,
        )


@task(
    name="annotate",
    task_run_name="annotate {file.relative}",
    retries=RETRIES,
    retry_delay_seconds=exponential_backoff(2),
    retry_jitter_factor=0.5,
    retry_condition_fn=can_heal,
)
@expected_errors_as_states
def annotate_one(
    file: CorpusFile, params: AnnotationPipelineParameters, request: AnnotateRequest, logs: Path
) -> AnnotateReport:
    """Scores one file, unless a task that was lost after it had finished did so before."""
    with logging_to(logs, worker_name()):
        return _finished(params, request, file, read_content=True) or annotate_file(
            file, request, heads_of_process(params, request)
        )


def load_heads(params: Scoring) -> list["Head"]:
    """Loads the heads of a job onto its device.

    Raises:
        HeadError: A checkpoint is missing, corrupted, or holds code.
    """
    import torch

    from mlfilter_core.devices import pick_device
    from mlfilter_core.heads import load_head

    device, dtype = pick_device(params.device), getattr(torch, params.model_dtype)
    checkpoints = params.regression_head_checkpoints
    return [load_head(name, Path(path).expanduser()).to(device, dtype) for name, path in checkpoints.items()]


def check_annotation_job(config: Path, overrides: dict[str, Any] | None = None) -> None:
    """Checks all of an annotation job that can be checked before there are embeddings.

    Raises:
        JobError: The job could not run.
    """
    job = load_job(Path(config), AnnotationJob, overrides)
    check_job(job)
    load_heads(job.params)


def check_heads(heads: list["Head"], files: list[CorpusFile], group: str) -> None:
    """Checks, before any work, that the heads fit every readable file; the others fail by themselves.

    Raises:
        HeadError: A head does not fit.
    """
    from mlfilter_core.heads import check_heads_fit

    for file in files:
        try:
            with EmbeddingFile(file.path, group) as embeddings:
                check_heads_fit(heads, embeddings.dim, encoder_weights(embeddings), str(file.path))
        except (EmbeddingFileError, OSError):
            continue


def annotate_request(
    params: Scoring, heads: list["Head"], output_dir: Path, group: str, source_dir: Path | None = None
) -> AnnotateRequest:
    """Returns what the parameters ask of every file."""
    return AnnotateRequest(
        output_dir=output_dir,
        head_sha256={head.name: head.sha256 for head in heads},
        output_keys=params.output_keys,
        score_prefix=params.score_prefix,
        group=group,
        batch_size=params.batch_size,
        model_dtype=params.model_dtype,
        compression=params.compression,
        source_dir=source_dir,
    )


def _finished(
    params: AnnotationPipelineParameters, request: AnnotateRequest, file: CorpusFile, read_content: bool
) -> AnnotateReport | None:
    return unless_overwritten(lambda: finished_annotation(file, request, read_content), params.overwrite)


_heads_of_process: dict[str, list["Head"]] = {}


def heads_of_process(params: Scoring, request: AnnotateRequest) -> list["Head"]:
    """Returns the heads, loaded once for each worker process and version of their checkpoints."""
    key = repr((params.regression_head_checkpoints, request.head_sha256, params.device, params.model_dtype))
    if key not in _heads_of_process:
        _heads_of_process.clear()
        _heads_of_process[key] = load_heads(params)
    return _heads_of_process[key]
