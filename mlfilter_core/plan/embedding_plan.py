"""What an embedding job would do and need."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from mlfilter_core.annotate_file import score_columns
from mlfilter_core.annotate_work import annotate_request
from mlfilter_core.config.embedding import EmbeddingJob, EmbeddingPipelineParameters
from mlfilter_core.corpus import SOURCE_SUFFIXES, CorpusFile, find_files, shard
from mlfilter_core.embed_file import EmbedRequest
from mlfilter_core.embed_work import embed_request
from mlfilter_core.model_files import ModelFiles, resolve_model
from mlfilter_core.plan.blocks import BlockSample, draw_blocks
from mlfilter_core.plan.device_here import device_here
from mlfilter_core.plan.encoder_trial import (
    Trial,
    compare_with_sentence_transformers,
    time_embedding,
    tokenize_sample,
)
from mlfilter_core.plan.estimates import HOW, Estimate, estimate_total
from mlfilter_core.plan.files_to_do import FilesToDo, find_files_to_do
from mlfilter_core.plan.findings import Findings
from mlfilter_core.plan.heads_found import find_heads, heads_section
from mlfilter_core.plan.output_room import check_folders, check_room
from mlfilter_core.plan.plan import Plan, PlannedWorkers, Section
from mlfilter_core.plan.predicted_size import embedding_file_bytes
from mlfilter_core.plan.sampled_documents import SampledDocuments, count_reasons, read_documents, read_records
from mlfilter_core.plan.slurm_advice import Work, advise, embedding_memory
from mlfilter_core.plan.wording import estimated, in_bytes, in_number, in_share, in_time
from mlfilter_core.wanted_keys import describe_absent, types_by_key, wanted_keys

if TYPE_CHECKING:
    from mlfilter_core.encoder import Encoder
    from mlfilter_core.heads import Head

N_SHOWN_KEYS = 12
N_TELLING_LINES = 20  # of a file, below which its share of rejected lines says little
LEAST_COSINE = 0.99  # of bfloat16 with float32 it is 0.996, and what pools differently is far below
DIGEST_CHARACTERS = 12


@dataclass(frozen=True)
class _Loaded:
    """An encoder, and what it took."""

    encoder: "Encoder"
    seconds: float


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
    files: list[CorpusFile] = []
    with findings.noting():
        found = find_files(params.input_dir, params.glob_pattern, SOURCE_SUFFIXES)
        files = shard(found, job.local.ranks, job.local.tasks)
    to_do = find_files_to_do(job, files, findings) if model is not None else FilesToDo(files, 0)
    sample = draw_blocks(to_do.files, params.max_line_bytes, seed, findings)
    schema = params.schema_of_documents()
    sampled = [read_documents(block, schema, params.max_line_bytes) for block in sample.all_blocks]
    sections.append(_files_section(files, to_do, sample))
    if sampled:
        sections.append(_keys_section(params, sample, findings))
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
        sections.append(_documents_section(params, sample, sampled, loaded, findings))
        _check_rejects(params, sample, sampled, findings)
    advice = ""
    if loaded is not None and request is not None:
        sections.append(_encoder_section(params, request, sampled, loaded, findings))
        if heads:
            _check_heads(params, request, loaded.encoder, heads, findings)
            sections.append(heads_section(heads))
        if sampled and any(documents.documents for documents in sampled):
            sections.append(_output_section(job, workers, to_do, sample, sampled, request, loaded.encoder, findings))
            if trial is not None:
                speed, advice = _speed_section(params, workers, to_do, sample, sampled, loaded, trial, findings)
                sections.append(speed)
    return Plan("embed", sections, findings.problems, findings.warnings, advice)


def _find_model(params: EmbeddingPipelineParameters, findings: Findings) -> ModelFiles | None:
    with findings.noting():
        return resolve_model(params.embedding_model, params.model_revision)
    return None


def _load(
    params: EmbeddingPipelineParameters, request: EmbedRequest, device: str, findings: Findings
) -> _Loaded | None:
    from mlfilter_core.encoder import load_encoder

    asked: int | Literal["auto"] = params.max_batch_tokens
    started = time.monotonic()
    with findings.noting():
        encoder = load_encoder(request.model, request.encoder, device, None if asked == "auto" else asked)
        return _Loaded(encoder, time.monotonic() - started)
    return None


def _files_section(files: Sequence[CorpusFile], to_do: FilesToDo, sample: BlockSample) -> Section:
    n_bytes = sum(sample.bytes_by_file.values())
    unpacked = estimate_total(sample, lambda block: block.lines_bytes)
    facts = {
        "found": len(files),
        "finished": to_do.n_finished,
        "to_do": len(to_do.files),
        "compressed": sample.n_compressed,
        "bytes": n_bytes,
        "decompressed_bytes": unpacked.to_json(),
        "largest": max(sample.bytes_by_file, key=lambda name: sample.bytes_by_file[name], default=None),
        "empty": sum(size == 0 for size in sample.bytes_by_file.values()),
    }
    words = f"{len(files):,} found, {to_do.n_finished:,} finished, {len(to_do.files):,} to do: {in_bytes(n_bytes)}"
    if sample.n_compressed:
        words += f", decompressed {estimated(unpacked, in_bytes)}"
    if facts["empty"]:
        words += f"; {facts['empty']:,} are empty"
    return Section("files", facts, [("files", words)])


def _keys_section(params: EmbeddingPipelineParameters, sample: BlockSample, findings: Findings) -> Section:
    records = read_records(sample.all_blocks)
    for absent in describe_absent(wanted_keys(params), records):
        findings.add_problem(f"{absent}; correct it")
    types = types_by_key(records)
    shown = [
        f"{key} {'/'.join(kinds)}"
        + ("" if sum(kinds.values()) == len(records) else f" in {in_share(sum(kinds.values()), len(records))}")
        for key, kinds in list(types.items())[:N_SHOWN_KEYS]
    ]
    more = f", and {len(types) - N_SHOWN_KEYS} more" if len(types) > N_SHOWN_KEYS else ""
    facts = {"records": len(records), "types": types}
    return Section("keys", facts, [("keys", ", ".join(shown) + more)])


def _documents_section(
    params: EmbeddingPipelineParameters,
    sample: BlockSample,
    sampled: Sequence[SampledDocuments],
    loaded: _Loaded | None,
    findings: Findings,
) -> Section:
    totals = _totals(sample, sampled)
    reasons = count_reasons(sampled)
    n_lines = sum(documents.n_lines for documents in sampled)
    by_reason = {
        reason: _total(
            sample, sampled, lambda own, wanted=reason: sum(line.reason == wanted for line in own.rejections)
        ).to_json()
        for reason in reasons
    }
    facts: dict[str, Any] = {
        "sampled_lines": n_lines,
        "sampled_files": len({documents.block.file.relative for documents in sampled}),
        "is_everything": sample.is_everything,
        "interval": HOW,
        **{name: total.to_json() for name, total in totals.items()},
        "rejected_by_reason": by_reason,
    }
    documents = totals["documents"]
    lines = [("documents", estimated(documents))]
    if loaded is not None:
        tokens, truncated = totals["tokens"], totals["truncated"]
        mean = tokens.value / documents.value if documents.value else 0
        lines.append(("tokens", f"{estimated(tokens)}; {mean:,.0f} for each document"))
        limit = loaded.encoder.max_length
        lines.append(("truncated", f"{in_share(truncated.value, documents.value)} of the documents, to {limit} tokens"))
    n_rejected = reasons.total()
    why = ", ".join(f"{n:,} {reason}" for reason, n in reasons.most_common())
    lines.append(("rejected", f"{in_share(n_rejected, n_lines)} of the sampled lines" + (f": {why}" if why else "")))
    whole = "all that there are" if sample.is_everything else f"of {facts['sampled_files']:,} files"
    lines.append(("sample", f"{n_lines:,} lines, {whole}"))
    return Section("documents", facts, lines)


def _check_rejects(
    params: EmbeddingPipelineParameters,
    sample: BlockSample,
    sampled: Sequence[SampledDocuments],
    findings: Findings,
) -> None:
    first = next((own.rejections[0] for own in sampled if own.rejections), None)
    if params.on_bad_record == "fail" and first is not None:
        n = sum(bool(own.rejections) for own in sampled)
        findings.add_problem(
            f"params.on_bad_record: fail: {n} of {len(sampled)} sampled pieces hold a line that is no document (the "
            f"first: {first.reason}: {first.detail}); mend the lines, or set it to reject"
        )
    by_file: dict[str, list[SampledDocuments]] = {}
    for own in sampled:
        by_file.setdefault(own.block.file.relative, []).append(own)
    failing = []
    for name, pieces in by_file.items():
        n_lines = sum(own.n_lines for own in pieces)
        n_rejected = sum(len(own.rejections) for own in pieces)
        is_whole = sum(own.block.n_bytes for own in pieces) >= sample.bytes_by_file[name] - 1
        if n_rejected > params.max_rejected_fraction * n_lines and (is_whole or n_lines >= N_TELLING_LINES):
            reason = count_reasons(pieces).most_common(1)[0][0]
            failing.append(f"{name} ({n_rejected} of {n_lines} lines, most of them {reason})")
    if failing:
        shown = ", ".join(failing[:3]) + (", ..." if len(failing) > 3 else "")
        findings.add_problem(
            f"{len(failing)} of {len(by_file)} sampled files would fail with more rejected lines than "
            f"params.max_rejected_fraction, {params.max_rejected_fraction}: {shown}; check the keys, or raise it"
        )


def _encoder_section(
    params: EmbeddingPipelineParameters,
    request: EmbedRequest,
    sampled: Sequence[SampledDocuments],
    loaded: _Loaded,
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
    from mlfilter_core.heads import check_heads_fit, find_mismatched_heads

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


def _output_section(
    job: EmbeddingJob,
    workers: PlannedWorkers,
    to_do: FilesToDo,
    sample: BlockSample,
    sampled: Sequence[SampledDocuments],
    request: EmbedRequest,
    encoder: "Encoder",
    findings: Findings,
) -> Section:
    params = job.params
    documents = _totals(sample, sampled)["documents"]
    n_files = len(sample.bytes_by_file)
    per_file = documents.value / max(n_files, 1)
    some = [document for own in sampled for document in own.documents]
    file_bytes = embedding_file_bytes(some, per_file, encoder.dim, request)
    total = documents.times(file_bytes * n_files / documents.value)
    stays = params.keep_embeddings
    # What is committed of the files under way lies beside them.
    row_bytes = encoder.dim * (4 if request.embedding_dtype == "float32" else 2)
    largest = max(sample.bytes_by_file.values()) / max(1, sum(sample.bytes_by_file.values()))
    n_under_way = min(workers.n, n_files)
    under_way = n_under_way * largest * documents.value * row_bytes
    needed = total if stays else total.times(n_under_way * largest)
    needed = Estimate(needed.value + under_way, needed.low, needed.high + under_way)
    n_made = n_files * (1 + 2 * (params.annotate_inline is not None)) + (n_files if count_reasons(sampled) else 0)
    room, words = check_room(params.output_dir, needed, n_made, findings)
    first = to_do.files[0]
    name = first.output(params.embedding_output_dir, ".h5")
    facts = {
        "embeddings": str(params.embedding_output_dir),
        "rejected": str(params.rejected_output_dir),
        "first": str(name),
        "file_bytes": file_bytes,
        "bytes": total.to_json(),
        **room,
    }
    stay = "" if stays else "; they do not stay"
    lines = [
        ("outputs", f"{n_files:,} files such as {name}{stay}"),
        ("", f"{estimated(total, in_bytes)} of embeddings; {words}"),
    ]
    if params.annotate_inline is not None:
        facts["annotated"] = str(params.annotated_output_dir)
        lines.append(("", f"annotated files in {params.annotated_output_dir}, which are not in this estimate"))
    return Section("outputs", facts, lines)


def _speed_section(
    params: EmbeddingPipelineParameters,
    workers: PlannedWorkers,
    to_do: FilesToDo,
    sample: BlockSample,
    sampled: Sequence[SampledDocuments],
    loaded: _Loaded,
    trial: Trial,
    findings: Findings,
) -> tuple[Section, str]:
    tokens = _totals(sample, sampled)["tokens"]
    share = max(sample.bytes_by_file.values()) / max(1, sum(sample.bytes_by_file.values()))
    worker_s = tokens.times(1 / trial.tokens_per_s)
    n_files = len(sample.bytes_by_file)
    worker_bytes, why = embedding_memory(trial.peak_bytes, params.max_line_bytes)
    works = [
        Work(seconds, share * seconds, n_files, worker_bytes, why)
        for seconds in (worker_s.value, worker_s.low, worker_s.high)
    ]
    run_s = Estimate(*(work.seconds(workers.n) + loaded.seconds for work in works))
    advice = advise(works[-1], workers)
    device = str(loaded.encoder.device)
    facts = {
        "device": device,
        "documents_per_s": trial.documents_per_s,
        "tokens_per_s": trial.tokens_per_s,
        "measured_documents": trial.documents,
        "measured_seconds": trial.seconds,
        "threads": trial.threads,
        "limit": trial.limit,
        "peak_bytes": trial.peak_bytes,
        "peak_gpu_bytes": trial.peak_gpu_bytes,
        "worker_seconds": worker_s.to_json(),
        "workers": workers.n,
        "run_seconds": run_s.to_json(),
        "recommended": dict(advice.settings),
        "reasons": list(advice.reasons),
    }
    where = f"{device} of this machine"
    if device == "cpu":
        where += f", {trial.threads} thread{'' if trial.threads == 1 else 's'}"
        if trial.threads < workers.n_cores:
            findings.add_warning(
                f"a worker has {workers.n_cores} cores, and what is measured here has {trial.threads}: it takes less time"
            )
    lines = [
        (
            "speed",
            f"{in_number(trial.documents_per_s)} documents/s, {in_number(trial.tokens_per_s)} tokens/s on {where} "
            f"({trial.documents:,} documents in {in_time(trial.seconds)}); {trial.limit} is the limit",
        ),
        ("memory", f"a worker takes {in_bytes(worker_bytes)} at most: {why}"),
        ("time", f"{estimated(run_s, in_time)} with {workers.words}, as fast as this one"),
    ]
    if workers.n > n_files:
        findings.add_warning(
            f"{workers.n - n_files} of {workers.n} workers would have nothing to do: a file is one worker's, and there "
            f"are {n_files}; divide the files, or ask for fewer workers"
        )
    if run_s.value and works[0].largest_file_s > 0.9 * run_s.value and n_files > 1 and workers.n > 1:
        largest = max(sample.bytes_by_file, key=lambda name: sample.bytes_by_file[name])
        findings.add_warning(
            f"{largest} alone takes {in_time(works[0].largest_file_s)}, for which the others wait; divide it"
        )
    if workers.are_elsewhere and workers.has_gpu and device == "cpu":
        findings.add_warning(
            "the workers have GPUs and this machine has none: speed, time and slurm_settings are those of its "
            "processor; plan in a job with one GPU for theirs"
        )
    text = advice.to_yaml() + "".join(f"# {reason}\n" for reason in advice.reasons)
    return Section("speed", facts, lines), text


def _totals(sample: BlockSample, sampled: Sequence[SampledDocuments]) -> dict[str, Estimate]:
    return {
        "lines": _total(sample, sampled, lambda own: own.n_lines),
        "documents": _total(sample, sampled, lambda own: len(own.documents)),
        "rejected": _total(sample, sampled, lambda own: len(own.rejections)),
        "tokens": _total(sample, sampled, lambda own: sum(own.n_tokens)),
        "truncated": _total(sample, sampled, lambda own: own.n_truncated),
    }


def _total(sample: BlockSample, sampled: Sequence[SampledDocuments], count: Any) -> Estimate:
    by_block = {id(own.block): float(count(own)) for own in sampled}
    return estimate_total(sample, lambda block: by_block[id(block)])
