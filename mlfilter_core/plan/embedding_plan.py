"""What an embedding job would do and need."""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mlfilter_core.annotating.annotate_file import score_columns
from mlfilter_core.annotating.work import annotate_request
from mlfilter_core.config.embedding import EmbeddingJob, EmbeddingPipelineParameters
from mlfilter_core.corpus.source_files import SOURCE_SUFFIXES
from mlfilter_core.embedding.embed_request import EmbedRequest
from mlfilter_core.embedding.work import embed_request
from mlfilter_core.encoder.model_files import ModelFiles, resolve_model
from mlfilter_core.files.task_files import TaskFile, find_files, shard
from mlfilter_core.plan.blocks import draw_blocks
from mlfilter_core.plan.device_here import device_here
from mlfilter_core.plan.embedding_outlook import LoadedEncoder, output_section, speed_section
from mlfilter_core.plan.encoder_trial import (
    compare_with_sentence_transformers,
    time_embedding,
    tokenize_sample,
)
from mlfilter_core.plan.files_to_do import FilesToDo, find_files_to_do
from mlfilter_core.plan.findings import Findings
from mlfilter_core.plan.heads_found import find_heads, heads_section
from mlfilter_core.plan.output_room import check_folders
from mlfilter_core.plan.plan import Plan, PlannedWorkers, Section
from mlfilter_core.plan.sampled_documents import SampledDocuments, read_documents
from mlfilter_core.plan.source_contents import check_rejects, documents_section, files_section, keys_section
from mlfilter_core.plan.wording import in_time

if TYPE_CHECKING:
    from mlfilter_core.encoder.encoder import Encoder
    from mlfilter_core.heads.head import Head

LEAST_COSINE = 0.99  # of bfloat16 with float32 it is 0.996, and what pools differently is far below
DIGEST_CHARACTERS = 12


def plan_embedding(job: EmbeddingJob, workers: PlannedWorkers, seed: int, findings: Findings) -> Plan:
    """Checks a job against its data, loads its model, and embeds some of its documents; writes nothing of the job's.

    Args:
        job: The job.
        workers: That it asks for.
        seed: Of the documents that are drawn.
        findings: Takes what is wrong.
    """
    params = job.params
    sections: list[Section] = []
    check_folders(job, findings)
    model = _find_model(params, findings)
    heads = find_heads(params.annotate_inline, findings) if params.annotate_inline is not None else None
    files: list[TaskFile] = []
    with findings.noting():
        found = find_files(params.input_dir, params.glob_pattern, SOURCE_SUFFIXES)
        files = shard(found, job.local.ranks, job.local.tasks)
    to_do = find_files_to_do(job, files, findings) if model is not None else FilesToDo(files, 0)
    sample = draw_blocks(to_do.files, params.max_line_bytes, seed, findings)
    schema = params.schema_of_documents()
    sampled = [read_documents(block, schema, params.max_line_bytes) for block in sample.all_blocks]
    sections.append(files_section(files, to_do, sample))
    if sampled:
        sections.append(keys_section(params, sample, findings))
    request = embed_request(params, model) if model is not None else None
    device = device_here(params.device, workers, findings)
    loaded = _load(params, request, device, findings) if request is not None and device is not None else None
    trial = None
    if loaded is not None and request is not None:
        tokenize_sample(sampled, loaded.encoder, request)
        with findings.noting():
            # Before another copy of the model is loaded, to compare with: the memory that this takes is a worker's.
            trial = time_embedding(sampled, loaded.encoder, request)
    if sampled:
        sections.append(documents_section(sample, sampled, None if loaded is None else loaded.encoder))
        check_rejects(params, sample, sampled, findings)
    advice = ""
    if loaded is not None and request is not None:
        sections.append(_encoder_section(params, request, sampled, loaded, findings))
        if heads:
            _check_heads(params, request, loaded.encoder, heads, findings)
            sections.append(heads_section(heads))
        if sampled and any(documents.documents for documents in sampled):
            sections.append(output_section(job, workers, to_do, sample, sampled, request, loaded.encoder, findings))
            if trial is not None:
                speed, advice = speed_section(params, workers, sample, sampled, loaded, trial, findings)
                sections.append(speed)
    return Plan("embed", sections, findings.problems, findings.warnings, advice)


def _find_model(params: EmbeddingPipelineParameters, findings: Findings) -> ModelFiles | None:
    with findings.noting():
        return resolve_model(params.embedding_model, params.model_revision)
    return None


def _load(
    params: EmbeddingPipelineParameters, request: EmbedRequest, device: str, findings: Findings
) -> LoadedEncoder | None:
    from mlfilter_core.encoder.encoder import load_encoder

    started = time.monotonic()
    with findings.noting():
        encoder = load_encoder(request.model, request.encoder, device, params.batch_token_limit, params.torch_compile)
        return LoadedEncoder(encoder, time.monotonic() - started)
    return None


def _encoder_section(
    params: EmbeddingPipelineParameters,
    request: EmbedRequest,
    sampled: Sequence[SampledDocuments],
    loaded: LoadedEncoder,
    findings: Findings,
) -> Section:
    encoder = loaded.encoder
    made = encoder.provenance()
    parity = compare_with_sentence_transformers(sampled, encoder, request)
    if isinstance(parity, str):
        words = f"not compared with SentenceTransformer.encode: {parity}"
        compared: dict[str, Any] = {"skipped": parity}
    else:
        cosine, n = parity
        words = f"lowest cosine of {n} documents with SentenceTransformer.encode: {cosine:.4f}"
        compared = {"lowest_cosine": cosine, "documents": n}
        if cosine < LEAST_COSINE:
            findings.add_warning(
                f"embeddings differ from those of SentenceTransformer.encode: {words}; check params.prompt, max_length "
                "and model_dtype"
            )
    facts = {
        **request.model.provenance(),
        **made,
        "load_seconds": loaded.seconds,
        "sentence_transformers": compared,
    }
    return Section(
        "encoder",
        facts,
        [
            (
                "encoder",
                f"{params.embedding_model}, weights {request.model.weights_sha256[:DIGEST_CHARACTERS]}; loads in "
                f"{in_time(loaded.seconds)}",
            ),
            (
                "",
                f"{encoder.dim} dimensions, {encoder.pooling} pooling, at most {encoder.max_length} tokens, "
                f"{made['compute_dtype']} on {encoder.device}, {made['attention']} attention",
            ),
            ("parity", words),
        ],
    )


def _check_heads(
    params: EmbeddingPipelineParameters,
    request: EmbedRequest,
    encoder: "Encoder",
    heads: list["Head"],
    findings: Findings,
) -> None:
    from mlfilter_core.heads.head import check_heads_fit, find_mismatched_heads

    assert params.annotate_inline is not None
    made_by = {**request.provenance(), **encoder.provenance()}
    for head in heads:
        with findings.noting():
            check_heads_fit([head], encoder.dim, request.model.model)
            is_allowed = params.annotate_inline.allow_mismatched_head
            find_mismatched_heads([head], made_by, "what this job embeds", is_allowed)
    if len(heads) == len(params.annotate_inline.regression_head_checkpoints):
        with findings.noting():
            score_columns(
                heads, annotate_request(params.annotate_inline, params.annotated_output_dir, params.hdf5_dataset_name)
            )
