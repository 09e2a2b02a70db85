"""The embedding pipeline: one Prefect task for each source file."""

if __name__ == "__main__":
    # Before the imports below: --help then needs no Prefect, Prefect's home can be chosen, and the tasks
    # travel to the workers as those of the module `flows.embed`, not of `__main__`.
    from flows.cli import embed_script

    embed_script()
    raise SystemExit

import functools
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from prefect import flow, get_run_logger, task
from prefect.runtime import flow_run
from prefect.tasks import exponential_backoff

from flows.annotate import annotate_request, heads_of_process, load_heads
from flows.cluster import local_workers, n_gpus, worker_device
from flows.failures import RETRIES, can_heal, expected_errors_as_states
from flows.logs import logging_to, worker_name
from flows.report import RunReport
from flows.run_files import check_job, run_files, unless_overwritten
from mlfilter_core.annotate_inline import InlineAnnotation, annotate_embedded, finished_embedding_and_annotation
from mlfilter_core.config import EmbeddingJob, EmbeddingPipelineParameters
from mlfilter_core.corpus import SOURCE_SUFFIXES, CorpusFile, find_files, shard
from mlfilter_core.embed_file import EmbedReport, EmbedRequest, embed_file, finished_embedding
from mlfilter_core.encoder_settings import EncoderSettings
from mlfilter_core.job_files import load_job
from mlfilter_core.model_files import ModelFiles, resolve_model
from mlfilter_core.publishing import remove_leftovers

if TYPE_CHECKING:
    from mlfilter_core.encoder import Encoder


@flow(name="embed", validate_parameters=False)
@expected_errors_as_states
def embed(config: Path, overrides: dict[str, Any] | None = None) -> RunReport:
    """Embeds a corpus: one HDF5 file for each JSONL file.

    Args:
        config: YAML job file, read on the machine that runs the flow.
        overrides: Values that replace those of the file, by dotted name: `{"params.batch_size": 128}`.

    Raises:
        JobError: The job cannot run as it is configured.
        FilesFailedError: Some files failed; the others are finished.
    """
    started = time.monotonic()
    job = load_job(Path(config), EmbeddingJob, overrides)
    params = job.params
    check_job(job)
    remove_leftovers(params.output_dir)
    logs = job.logging_dir / f"embed-{flow_run.get_name()}"
    with logging_to(logs, "flow"):
        files = find_files(params.input_dir, params.glob_pattern, SOURCE_SUFFIXES)
        request = embed_request(params, resolve_model(params.embedding_model, params.model_revision))
        annotation = inline_annotation(params, request)
        if params.trust_remote_code:
            get_run_logger().warning("trust_remote_code: code that %s ships is run", params.embedding_model)
        return run_files(
            "embed",
            embed_one,
            shard(files, job.local.ranks, job.local.tasks),
            parameters={"params": params, "request": request, "annotation": annotation, "logs": logs},
            finished=functools.partial(_finished, params, request, annotation, read_content=False),
            workers=functools.partial(local_workers, job.local, max(1, n_gpus())),
            output_dir=params.embedding_output_dir if params.keep_embeddings else params.annotated_output_dir,
            logs=logs,
            started=started,
        )


@task(
    name="embed",
    task_run_name="embed {file.relative}",
    retries=RETRIES,
    retry_delay_seconds=exponential_backoff(2),
    retry_jitter_factor=0.5,
    retry_condition_fn=can_heal,
)
@expected_errors_as_states
def embed_one(
    file: CorpusFile,
    params: EmbeddingPipelineParameters,
    request: EmbedRequest,
    annotation: InlineAnnotation | None,
    logs: Path,
) -> EmbedReport:
    """Embeds one file, unless a task that was lost after it had finished did so before."""
    from mlfilter_core.heads import check_heads_fit

    with logging_to(logs, worker_name()):
        finished = _finished(params, request, annotation, file, read_content=True)
        if finished is not None:
            return finished
        embeddings, rejects = _output(params, file), file.output(params.rejected_output_dir, ".jsonl")
        encoder = _encoder(request.model, request.encoder, worker_device(params.device), params.max_batch_tokens)
        if annotation is None or params.annotate_inline is None:
            return embed_file(file, embeddings.path, rejects, request, encoder)
        heads = heads_of_process(params.annotate_inline, annotation.request)
        check_heads_fit(heads, encoder.dim, request.model.weights_sha256, request.model.model)
        embedded = _finished(params, request, None, file, read_content=True)
        embedded = embedded or embed_file(file, embeddings.path, rejects, request, encoder)
        return annotate_embedded(embedded, embeddings, annotation, heads)


def inline_annotation(params: EmbeddingPipelineParameters, request: EmbedRequest) -> InlineAnnotation | None:
    """Returns what is done with each file once it is embedded, if anything.

    Raises:
        HeadError: A checkpoint is missing, corrupted, or was trained on another encoder.
    """
    if params.annotate_inline is None:
        return None
    from mlfilter_core.heads import check_heads_know_encoder

    heads = load_heads(params.annotate_inline)
    check_heads_know_encoder(heads, request.model.weights_sha256, request.model.model)
    asked = annotate_request(params.annotate_inline, heads, params.annotated_output_dir, params.hdf5_dataset_name)
    return InlineAnnotation(asked, params.keep_embeddings)


def embed_request(params: EmbeddingPipelineParameters, model: ModelFiles) -> EmbedRequest:
    """Returns what the parameters ask of every file."""
    return EmbedRequest(
        model=model,
        encoder=EncoderSettings(
            max_length=params.max_length,
            truncate=params.truncation not in (False, "do_not_truncate"),
            pad_to_max_length=params.padding == "max_length",
            pooling=params.pooling,
            prompt=params.prompt,
            model_dtype=params.model_dtype,
            trust_remote_code=params.trust_remote_code,
        ),
        schema=params.schema_of_documents(),
        group=params.hdf5_dataset_name,
        embedding_dtype=params.embedding_dtype,
        batch_size=params.batch_size,
        writer_batch_size=params.writer_batch_size,
        fail_on_bad_record=params.on_bad_record == "fail",
        max_rejected_fraction=params.max_rejected_fraction,
        max_line_bytes=params.max_line_bytes,
    )


def _output(params: EmbeddingPipelineParameters, file: CorpusFile) -> CorpusFile:
    return CorpusFile(f"{file.stem}.h5", file.stem, params.embedding_output_dir)


def _finished(
    params: EmbeddingPipelineParameters,
    request: EmbedRequest,
    annotation: InlineAnnotation | None,
    file: CorpusFile,
    read_content: bool,
) -> EmbedReport | None:
    embeddings = _output(params, file)

    def finished() -> EmbedReport | None:
        if annotation is None:
            return finished_embedding(file, embeddings.path, request, read_content)
        return finished_embedding_and_annotation(file, embeddings, request, annotation, read_content)

    return unless_overwritten(finished, params.overwrite)


@functools.lru_cache(maxsize=1)
def _encoder(
    model: ModelFiles, settings: EncoderSettings, device: str, max_batch_tokens: int | Literal["auto"]
) -> "Encoder":
    """Returns the encoder, loaded once for each worker process: it takes seconds and gigabytes."""
    from mlfilter_core.encoder import load_encoder

    return load_encoder(model, settings, device, None if max_batch_tokens == "auto" else max_batch_tokens)
