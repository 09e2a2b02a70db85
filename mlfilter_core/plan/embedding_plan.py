"""What an embedding job would do and need."""

from typing import TYPE_CHECKING, Any

from mlfilter_core.annotating.annotate_file import score_columns
from mlfilter_core.annotating.work import annotate_request
from mlfilter_core.config.embedding import EmbeddingJob, EmbeddingPipelineParameters
from mlfilter_core.corpus.source_files import find_sources
from mlfilter_core.embedding.embed_request import EmbedRequest
from mlfilter_core.embedding.work import embed_request, embedding_workload, is_small
from mlfilter_core.encoder.model_files import resolve_model
from mlfilter_core.plan.corpus_sample import CorpusSample, draw_corpus
from mlfilter_core.plan.cost import cost_section
from mlfilter_core.plan.embedding_outlook import embedding_speed, measured_speed, output_section
from mlfilter_core.plan.encoder_trial import (
    LoadedEncoder,
    compare_with_sentence_transformers,
    load_for_trial,
    time_embedding,
)
from mlfilter_core.plan.files_to_do import find_files_to_do
from mlfilter_core.plan.findings import Findings
from mlfilter_core.plan.job_heads import check_heads, find_heads, heads_section
from mlfilter_core.plan.plan import Plan, PlannedWorkers, Section
from mlfilter_core.plan.resources import check_folders, device_to_measure
from mlfilter_core.plan.source_contents import check_rejects, documents_section, files_section, keys_section
from mlfilter_core.wording import rough_duration

if TYPE_CHECKING:
    from mlfilter_core.heads.head import Head

# Of two forward passes that differ by rounding only; a different pooling gives far less.
MIN_COSINE = {"float32": 0.9999, "bfloat16": 0.99, "float16": 0.99}
DIGEST_CHARACTERS = 12


def plan_embedding(job: EmbeddingJob, workers: PlannedWorkers, seed: int, findings: Findings) -> Plan:
    """Checks a job against a sample of its data, drawn with `seed`, loads its model, and embeds some documents.

    Writes none of the job's files. Problems go to `findings`.
    """
    params = job.params
    check_folders(job, findings)
    request = _find_model(params, findings)
    heads = find_heads(params.annotate_inline, findings) if params.annotate_inline is not None else []
    files = find_files_to_do(
        job,
        embedding_workload,
        lambda: find_sources(params.input_dir, params.glob_pattern, params.output_dir),
        findings,
    )
    sample = draw_corpus(files, params, seed, findings)
    sections = [files_section(sample)]
    if sample.pieces:
        sections.append(keys_section(params, sample, findings))
    device = device_to_measure(params.device, workers, findings)
    loaded = None
    if request is not None and device is not None:
        has_openvino = params.openvino and not is_small(files.found)  # as in the job
        loaded = load_for_trial(params, request, device, has_openvino, findings)
    trial = None
    if loaded is not None:
        sample = sample.tokenized(loaded.encoder, loaded.request.encoder.truncate)
        with findings.noting():
            # Before the comparison loads a second copy of the model: the peak memory must be a worker's.
            trial = time_embedding(sample, loaded)
    if sample.pieces:
        sections.append(documents_section(sample, None if loaded is None else loaded.encoder))
        check_rejects(params, sample, findings)
    if loaded is None:
        return Plan("embed", sections, findings.problems, findings.warnings)
    sections.append(_encoder_section(sample, loaded, findings))
    if heads:
        _check_inline(params, loaded, heads, findings)
        sections.append(heads_section(heads))
    advice = ""
    if sample.documents:
        sections.append(output_section(job, workers, sample, loaded, findings))
    if trial is not None:
        speed, advice = embedding_speed(workers, files, sample, loaded, trial, findings)
        sections.append(speed)
        sections.append(cost_section(measured_speed(sample, trial), job.price_per_hour, workers, findings))
    return Plan("embed", sections, findings.problems, findings.warnings, advice)


def _find_model(params: EmbeddingPipelineParameters, findings: Findings) -> EmbedRequest | None:
    with findings.noting():
        return embed_request(params, resolve_model(params.embedding_model, params.model_revision))
    return None


def _encoder_section(sample: CorpusSample, loaded: LoadedEncoder, findings: Findings) -> Section:
    encoder, model = loaded.encoder, loaded.request.model
    made = encoder.provenance()
    for warning in encoder.warnings:
        findings.add_warning(warning)
    parity = compare_with_sentence_transformers(sample, loaded)
    if isinstance(parity, str):
        words = f"not compared with SentenceTransformer.encode: {parity}"
        compared: dict[str, Any] = {"skipped": parity}
    else:
        cosine, n = parity
        words = f"lowest cosine of {n} texts with SentenceTransformer.encode: {cosine:.4f}"
        compared = {"lowest_cosine": cosine, "texts": n}
        if cosine < MIN_COSINE[made["compute_dtype"]]:
            findings.add_warning(
                f"embeddings differ from those of SentenceTransformer.encode: {words}; check params.prompt, max_length "
                "and model_dtype"
            )
    facts = {**model.provenance(), **made, "load_seconds": loaded.load_s, "sentence_transformers": compared}
    weights = model.weights_sha256[:DIGEST_CHARACTERS]
    lines = [
        ("encoder", f"{model.model}, weights {weights}; loads in {rough_duration(loaded.load_s)}"),
        (
            "",
            f"{encoder.dim} dimensions, {encoder.pooling} pooling, {encoder.lengths()}, {encoder.arithmetic()}",
        ),
        ("parity", words),
    ]
    return Section("encoder", facts, lines)


def _check_inline(
    params: EmbeddingPipelineParameters, loaded: LoadedEncoder, heads: list["Head"], findings: Findings
) -> None:
    """Notes where the heads of an annotation in the same pass do not fit."""
    scoring = params.annotate_inline
    assert scoring is not None
    made_by = {**loaded.request.provenance(), **loaded.encoder.provenance()}
    check_heads(heads, scoring, made_by, loaded.encoder.dim, "this job's output", findings)
    if len(heads) == len(scoring.regression_head_checkpoints):
        with findings.noting():
            score_columns(heads, annotate_request(scoring, params.annotated_output_dir, params.hdf5_dataset_name))
