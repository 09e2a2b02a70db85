"""The disk space and the time for embedding a corpus."""

import functools
import math
import tempfile
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np

from mlfilter_core.config.embedding import EmbeddingJob
from mlfilter_core.embedding_store.layout import Provenance
from mlfilter_core.plan.corpus_sample import CorpusSample
from mlfilter_core.plan.cost import BILLION, MILLION, MeasuredSpeed
from mlfilter_core.plan.encoder_trial import EncoderTrial, LoadedEncoder
from mlfilter_core.plan.estimates import Estimate
from mlfilter_core.plan.files_to_do import FilesToDo
from mlfilter_core.plan.findings import Findings
from mlfilter_core.plan.plan import PlannedWorkers, Section
from mlfilter_core.plan.resources import check_memory, check_room
from mlfilter_core.plan.slurm_advice import Work, speed_section
from mlfilter_core.plan.worker_memory import embedding_memory
from mlfilter_core.versions import library_versions
from mlfilter_core.wording import plural, rate, rough_duration, rough_share, size

MAX_WRITTEN_DOCUMENTS = 4096  # a larger file grows in proportion
MAX_WRITTEN_BYTES = 256 << 20
FLOAT32_BYTES = 4
SPARE_CORES = 1  # beside those that tokenize: reads, starts the GPU's work, writes
WAITING_SHARE = 0.9  # share of the time of a run above which its largest file gets a warning


def output_section(
    job: EmbeddingJob, workers: PlannedWorkers, sample: CorpusSample, loaded: LoadedEncoder, findings: Findings
) -> Section:
    """Returns what is written; notes where there is no room for it. The sample contains a document at least."""
    params = job.params
    n_files = sample.n_files
    documents = sample.total(lambda piece: len(piece.documents))
    file_bytes = _embedding_file_bytes(sample, documents.value / n_files, loaded)
    total = documents.times(file_bytes * n_files / documents.value)
    # The rows committed so far of the files in progress lie beside them.
    in_progress = sample.share_of_largest(workers.n)
    committed = in_progress * documents.value * _embedding_bytes(loaded) * _chunks_per_document(sample)
    needed = total if params.keep_embeddings else total.times(in_progress)
    needed = Estimate(needed.value + committed, needed.low, needed.high + committed)
    files_each = 1 + 2 * (params.annotate_inline is not None) + bool(sample.reasons)
    room, words = check_room(params.output_dir, needed, files_each * n_files, findings)
    name = sample.files.to_do[0].output(params.embedding_output_dir, ".h5")
    facts: dict[str, Any] = {
        "embeddings": str(params.embedding_output_dir),
        "rejected": str(params.rejected_output_dir),
        "first": str(name),
        "file_bytes": file_bytes,
        "bytes": total.to_json(),
        **room,
    }
    until = "" if params.keep_embeddings else ", removed once they are annotated"
    lines = [
        ("outputs", f"{plural(n_files, 'file')} such as {name}{until}"),
        ("", f"{total.words(size)} of embeddings; {words}"),
    ]
    if params.annotate_inline is not None:
        facts["annotated"] = str(params.annotated_output_dir)
        lines.append(("", f"annotated files in {params.annotated_output_dir}, not part of this estimate"))
    return Section("outputs", facts, lines)


def embedding_speed(
    workers: PlannedWorkers,
    files: FilesToDo,
    sample: CorpusSample,
    loaded: LoadedEncoder,
    trial: EncoderTrial,
    findings: Findings,
) -> tuple[Section, str]:
    """Returns how long the job takes, and the `slurm_settings` that suit it, as YAML."""
    worker_s = sample.total(lambda piece: piece.n_tokens).times(1 / trial.tokens_per_s)
    chunks = 0.0
    if loaded.request.encoder.chunks is not None:
        n_bytes = sum(len(line) for piece in sample.pieces for line in piece.lines)
        chunks = sum(piece.n_chunks for piece in sample.pieces) * loaded.encoder.dim * FLOAT32_BYTES / max(1, n_bytes)
    memory = embedding_memory(trial.peak_bytes, loaded.request.max_line_bytes, chunks)
    check_memory(memory, workers, findings, "params.max_line_bytes", "local_settings.workers")
    device = trial.device
    # Of a CPU, tokenizing takes a share, however many cores there are.
    cores = 1 if device == "cpu" or not workers.has_gpu else math.ceil(trial.tokenizing_cores) + SPARE_CORES
    work = Work(worker_s, functools.cache(files.divided), memory, loaded.load_s, cores)
    measured = {
        "device": device,
        "documents_per_s": trial.documents_per_s,
        "tokens_per_s": trial.tokens_per_s,
        "measured_documents": trial.documents,
        "measured_seconds": trial.seconds,
        "threads": trial.threads,
        "tokenizer_tokens_per_s": trial.tokenizer_tokens_per_s,
        "encoder_tokens_per_s": trial.encoder_tokens_per_s,
        "tokenizing_cores": trial.tokenizing_cores,
        "limit": trial.bottleneck,
        "peak_bytes": trial.peak_bytes,
        "peak_gpu_bytes": trial.peak_gpu_bytes,
        "worker_seconds": worker_s.to_json(),
    }
    where = f"this machine's {device}" + (f", {plural(trial.threads, 'thread')}" if device == "cpu" else "")
    words = (
        f"{rate(trial.documents_per_s)} documents/s, {rate(trial.tokens_per_s)} tokens/s on {where} "
        f"({plural(trial.documents, 'document')} in {rough_duration(trial.seconds)}); bottleneck: {trial.bottleneck}"
    )
    _warn_of_waiting(work, workers, findings)
    if device != "cpu" and workers.has_gpu and workers.n_cores < cores:
        fix = f"set slurm_settings.cpus_per_task to {cores * workers.n_per_job}"
        findings.add_warning(
            f"a worker has {plural(workers.n_cores, 'core')}, and its GPU needs {cores} so that it does not wait for "
            f"tokens; {fix if workers.are_elsewhere else 'ask for fewer workers, or a machine with more cores'}"
        )
    if device == "cpu" and trial.threads < workers.n_cores:
        findings.add_warning(
            f"a worker has {workers.n_cores} cores and is faster than this measurement with {trial.threads}"
        )
    if workers.are_elsewhere and workers.has_gpu and device == "cpu":
        findings.add_warning(
            "the workers have GPUs and this machine has none: speed, time and slurm_settings are for its CPU; run the "
            "plan in a job with one GPU to measure that"
        )
    return speed_section(measured, [("speed", words), ("tokenizer", _tokenizer(trial))], work, workers)


def measured_speed(sample: CorpusSample, trial: EncoderTrial) -> MeasuredSpeed:
    """Returns what one worker takes for the corpus, for documents and for tokens."""
    second = 1 / trial.tokens_per_s
    return MeasuredSpeed(
        trial.device,
        trial.threads,
        sample.total(lambda piece: piece.n_tokens).times(second),
        sample.tokens_per_document().times(MILLION * second),
        Estimate.exact(BILLION * second),
    )


def _tokenizer(trial: EncoderTrial) -> str:
    """Returns how fast the tokenizer is beside the encoder, as text."""
    words = f"{rate(trial.tokenizer_tokens_per_s)} tokens/s on one core"
    if trial.device == "cpu":
        return f"{words}: {rough_share(trial.tokenizing_cores, trial.threads)} of the time of the cores"
    alone = f"{rate(trial.encoder_tokens_per_s)} tokens/s of the encoder alone"
    return f"{words}: {trial.tokenizing_cores:.1f} cores for each GPU keep up with {alone}"


def _embedding_file_bytes(sample: CorpusSample, documents_per_file: float, loaded: LoadedEncoder) -> float:
    """Returns the size of a file with this number of documents, by writing one."""
    dim, request = loaded.encoder.dim, loaded.request
    chunks = _chunks_per_document(sample)
    most = int(MAX_WRITTEN_BYTES / (_embedding_bytes(loaded) * chunks))
    n = max(1, min(round(documents_per_file), MAX_WRITTEN_DOCUMENTS, most))
    with tempfile.TemporaryDirectory(prefix="mlfilter-plan-") as folder:
        path = Path(folder) / "sample.h5"
        with request.open_writer(path, dim) as writer:
            rows = list(islice(cycle(sample.documents), n))
            n_chunks = np.diff(np.floor(np.arange(n + 1) * chunks)).astype(np.int32)
            embeddings = np.zeros((int(n_chunks.sum()), dim), request.rows_dtype)
            writer.append(rows, embeddings, np.zeros(n, np.int32), n_chunks)
            writer.finish(Provenance({}, request.provenance(), {}, {}, library_versions()))
        written = path.stat().st_size
    # Even a file of one row has all that does not grow with the rows.
    return written * max(1.0, documents_per_file / n)


def _chunks_per_document(sample: CorpusSample) -> float:
    return sum(piece.n_chunks for piece in sample.pieces) / len(sample.documents)


def _embedding_bytes(loaded: LoadedEncoder) -> int:
    return loaded.encoder.dim * np.dtype(loaded.request.embedding_dtype).itemsize


def _warn_of_waiting(work: Work, workers: PlannedWorkers, findings: Findings) -> None:
    tasks = work.divided(workers.n)
    if workers.n > tasks.n_tasks:
        findings.add_warning(
            f"{workers.n - tasks.n_tasks} of {workers.n} workers would have nothing to do: the corpus makes "
            f"{plural(tasks.n_tasks, 'task')}, as large files are divided with params.split: auto alone, and small "
            "ones are not; ask for fewer workers"
        )
    run_s = work.run_s(workers.n).value + work.start_s
    largest_s = work.total_s.value * tasks.largest_share
    if largest_s > WAITING_SHARE * run_s and tasks.n_tasks > 1 and workers.n > 1:
        findings.add_warning(
            f"{tasks.largest} alone takes {rough_duration(largest_s)} while the other workers wait; give the "
            "corpus in smaller files, or have it divided with params.split: auto"
        )
