"""What embedding a corpus takes of disk, time or Slurm."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mlfilter_core.config.embedding import EmbeddingJob, EmbeddingPipelineParameters
from mlfilter_core.embedding.embed_request import EmbedRequest
from mlfilter_core.plan.blocks import BlockSample
from mlfilter_core.plan.encoder_trial import Trial
from mlfilter_core.plan.estimates import Estimate
from mlfilter_core.plan.files_to_do import FilesToDo
from mlfilter_core.plan.findings import Findings
from mlfilter_core.plan.output_room import check_room
from mlfilter_core.plan.plan import PlannedWorkers, Section
from mlfilter_core.plan.predicted_size import embedding_file_bytes
from mlfilter_core.plan.sampled_documents import SampledDocuments, count_reasons
from mlfilter_core.plan.slurm_advice import Work, advise, embedding_memory
from mlfilter_core.plan.source_contents import totals_of
from mlfilter_core.plan.wording import estimated, in_bytes, in_rate, in_time

if TYPE_CHECKING:
    from mlfilter_core.encoder.encoder import Encoder


@dataclass(frozen=True)
class LoadedEncoder:
    """An encoder.

    Attributes:
        encoder: The job's.
        seconds: That it took to load.
    """

    encoder: "Encoder"
    seconds: float


def output_section(
    job: EmbeddingJob,
    workers: PlannedWorkers,
    to_do: FilesToDo,
    sample: BlockSample,
    sampled: Sequence[SampledDocuments],
    request: EmbedRequest,
    encoder: "Encoder",
    findings: Findings,
) -> Section:
    """Returns what is written, and whether there is room for it."""
    params = job.params
    documents = totals_of(sample, sampled)["documents"]
    n_files = len(sample.bytes_by_file)
    per_file = documents.value / max(n_files, 1)
    some = [document for own in sampled for document in own.documents]
    file_bytes = embedding_file_bytes(some, per_file, encoder.dim, request)
    total = documents.times(file_bytes * n_files / documents.value)
    stays = params.keep_embeddings
    # What is committed of the files under way lies beside them.
    row_bytes = encoder.dim * np.dtype(request.embedding_dtype).itemsize
    largest_first = sorted(sample.bytes_by_file.values(), reverse=True)
    share_under_way = sum(largest_first[: workers.n]) / max(1, sum(largest_first))
    under_way = share_under_way * documents.value * row_bytes
    needed = total if stays else total.times(share_under_way)
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


def speed_section(
    params: EmbeddingPipelineParameters,
    workers: PlannedWorkers,
    sample: BlockSample,
    sampled: Sequence[SampledDocuments],
    loaded: LoadedEncoder,
    trial: Trial,
    findings: Findings,
) -> tuple[Section, str]:
    """Returns how long the job takes, and the `slurm_settings` that suit it, as YAML."""
    tokens = totals_of(sample, sampled)["tokens"]
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
    where = f"this machine's {device}"
    if device == "cpu":
        where += f", {trial.threads} thread{'' if trial.threads == 1 else 's'}"
        if trial.threads < workers.n_cores:
            findings.add_warning(
                f"a worker has {workers.n_cores} cores, and what is measured here has {trial.threads}: it is faster"
            )
    lines = [
        (
            "speed",
            f"{in_rate(trial.documents_per_s)} documents/s, {in_rate(trial.tokens_per_s)} tokens/s on {where} "
            f"({trial.documents:,} documents in {in_time(trial.seconds)}), limited by {trial.limit}",
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
