"""What an annotation job would do and need."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlfilter_core.annotating.annotate_file import score_columns
from mlfilter_core.annotating.work import annotate_request, annotation_workload
from mlfilter_core.config.annotation import AnnotationJob, AnnotationPipelineParameters
from mlfilter_core.embedding_store.fingerprint import Fingerprint, OneEncoder, fingerprint, name_of
from mlfilter_core.embedding_store.layout import EMBEDDING_SUFFIXES
from mlfilter_core.embedding_store.reader import EmbeddingFile
from mlfilter_core.files.task_files import TaskFile
from mlfilter_core.plan.annotation_trial import AnnotationTrial, try_annotation
from mlfilter_core.plan.device_here import device_here
from mlfilter_core.plan.estimates import Estimate
from mlfilter_core.plan.files_to_do import FilesToDo, find_files_to_do
from mlfilter_core.plan.findings import Findings
from mlfilter_core.plan.heads_found import find_heads, heads_section
from mlfilter_core.plan.output_room import check_folders, check_room
from mlfilter_core.plan.plan import Plan, PlannedWorkers, Section
from mlfilter_core.plan.slurm_advice import Work, advise
from mlfilter_core.plan.wording import in_bytes, in_rate, in_time

if TYPE_CHECKING:
    from mlfilter_core.heads.head import Head

N_TRIED_FILES = 8
# Arbitrary: rows that were not tried may have longer texts.
MEMORY_MARGIN, MIN_WORKER_BYTES = 1.5, 1 << 30


@dataclass(frozen=True)
class _Rows:
    """What the files of embeddings say of themselves.

    Attributes:
        by_file: Rows of each readable file, by its relative path.
        dim: Of the embeddings; 0 where no file is readable.
        encoder: Of them; empty where no file says.
    """

    by_file: dict[str, int]
    dim: int
    encoder: Fingerprint


def plan_annotation(job: AnnotationJob, workers: PlannedWorkers, seed: int, findings: Findings) -> Plan:
    """Checks a job against its embeddings, loads its heads, and scores some rows; writes nothing of the job's.

    Args:
        job: The job.
        workers: The workers that it asks for.
        seed: Unused: the files to score are spread evenly.
        findings: Takes what is wrong.
    """
    params = job.params
    check_folders(job, findings)
    heads = find_heads(params, findings)
    are_all = len(heads) == len(params.regression_head_checkpoints)
    files = find_files_to_do(job, annotation_workload, params.embeddings_directory, EMBEDDING_SUFFIXES, findings)
    rows = _read_rows(files.found, params, heads, findings)
    sections = [_files_section(files, rows)]
    if heads:
        sections.append(heads_section(heads))
    request = None
    if are_all:
        with findings.noting():
            request = annotate_request(params, params.annotated_output_dir, params.hdf5_dataset_name, params.source_dir)
            score_columns(heads, request)
    device = device_here(params.device, workers, findings)
    advice = ""
    readable = [file for file in files.to_do if file.relative in rows.by_file]
    if request is not None and device is not None and all(head.dim == rows.dim for head in heads):
        trial = try_annotation(_spread_over(readable), request, heads, device, findings)
        if trial is not None:
            own, advice = _outlook(params, workers, readable, rows, trial, findings)
            sections += own
    return Plan("annotate", sections, findings.problems, findings.warnings, advice)


def _read_rows(
    files: Sequence[TaskFile], params: AnnotationPipelineParameters, heads: Sequence["Head"], findings: Findings
) -> _Rows:
    """Reads what each file says of itself, and notes where a head does not fit."""
    from mlfilter_core.heads.head import check_heads_fit, find_mismatched_heads

    one_encoder = OneEncoder()
    by_file: dict[str, int] = {}
    seen: set[str] = set()
    dim = 0
    for file in files:
        with findings.noting():
            with EmbeddingFile(file.path, params.hdf5_dataset_name) as embeddings:
                by_file[file.relative] = embeddings.n_rows
                own_dim, made_by = embeddings.dim, fingerprint(embeddings.provenance)
            dim = dim or own_dim
            kind = repr((own_dim, sorted(made_by.items())))
            if kind in seen:  # a head that does not fit one file is said once, not for each
                continue
            seen.add(kind)
            for head in heads:
                with findings.noting():
                    check_heads_fit([head], own_dim, str(file.path))
                    mismatched = find_mismatched_heads([head], made_by, str(file.path), params.allow_mismatched_head)
                    for name, differences in mismatched.items():
                        findings.add_warning(f"head {name} was trained on other embeddings: {differences}")
            one_encoder.check(file.path, made_by)
    return _Rows(by_file, dim, one_encoder.fingerprint)


def _files_section(files: FilesToDo, rows: _Rows) -> Section:
    n_rows = sum(rows.by_file.values())
    left = sum(rows.by_file.get(file.relative, 0) for file in files.to_do)
    facts = {
        "found": len(files.found),
        "readable": len(rows.by_file),
        "finished": files.n_finished,
        "to_do": len(files.to_do),
        "rows": n_rows,
        "rows_to_do": left,
        "dim": rows.dim,
        "encoder": dict(rows.encoder),
    }
    made_by = name_of(rows.encoder) if rows.encoder else "an encoder that they do not name"
    lines = [("files", f"{files}: {left:,} documents")]
    if rows.dim:
        lines.append(("embeddings", f"{rows.dim} dimensions, of {made_by}"))
    return Section("files", facts, lines)


def _spread_over(files: Sequence[TaskFile]) -> list[TaskFile]:
    n = min(N_TRIED_FILES, len(files))
    return [files[i * len(files) // n] for i in range(n)]


def _outlook(
    params: AnnotationPipelineParameters,
    workers: PlannedWorkers,
    files: Sequence[TaskFile],
    rows: _Rows,
    trial: AnnotationTrial,
    findings: Findings,
) -> tuple[list[Section], str]:
    """Returns what is written, and how long it takes."""
    left = sum(rows.by_file[file.relative] for file in files)
    needed = trial.bytes_per_row.times(left)
    room, words = check_room(params.output_dir, needed, 2 * len(files), findings)
    example = files[0].output(params.annotated_output_dir, trial.suffix)
    outputs = Section(
        "outputs",
        {"annotated": str(params.annotated_output_dir), "first": str(example), "columns": list(trial.columns), **room},
        [
            ("outputs", f"{len(files):,} files such as {example}"),
            ("", f"{', '.join([*params.output_keys, *trial.columns])}"),
            ("", words),
        ],
    )
    total_s = left / trial.rows_per_s
    largest_s = max(rows.by_file[file.relative] for file in files) / trial.rows_per_s
    worker_bytes = max(MEMORY_MARGIN * trial.peak_bytes, MIN_WORKER_BYTES)
    why = f"{in_bytes(trial.peak_bytes)} measured, and {in_bytes(worker_bytes - trial.peak_bytes)} for longer texts"
    work = Work(total_s, largest_s, len(files), worker_bytes, why)
    run_s = work.seconds(workers.n)
    advice = advise(work, workers)
    facts: dict[str, Any] = {
        "device": trial.device,
        "documents_per_s": trial.rows_per_s,
        "measured_documents": trial.rows,
        "measured_seconds": trial.seconds,
        "workers": workers.n,
        "run_seconds": Estimate(run_s, run_s, run_s).to_json(),
        "recommended": dict(advice.settings),
        "reasons": list(advice.reasons),
    }
    lines = [
        ("speed", f"{in_rate(trial.rows_per_s)} documents/s on this machine's {trial.device}"),
        ("memory", f"a worker takes {in_bytes(worker_bytes)} at most: {why}"),
        ("time", f"{in_time(run_s)} with {workers.words}, as fast as this one"),
    ]
    text = advice.to_yaml() + "".join(f"# {reason}\n" for reason in advice.reasons)
    return [outputs, Section("speed", facts, lines)], text
