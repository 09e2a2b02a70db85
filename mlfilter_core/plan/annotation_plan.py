"""What an annotation job would do and need."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mlfilter_core.annotating.annotate_file import score_columns
from mlfilter_core.annotating.annotated_format import SUFFIXES
from mlfilter_core.annotating.work import annotate_work, annotation_workload
from mlfilter_core.config.annotation import AnnotationJob, AnnotationPipelineParameters
from mlfilter_core.embedding_store.fingerprint import Fingerprint, OneEncoder, fingerprint, name_of
from mlfilter_core.embedding_store.layout import EMBEDDING_SUFFIXES
from mlfilter_core.embedding_store.reader import EmbeddingFile
from mlfilter_core.files.task_files import TaskFile, evenly_spaced, find_files
from mlfilter_core.plan.annotation_trial import AnnotationTrial, try_annotation
from mlfilter_core.plan.cost import MILLION, MeasuredSpeed, cost_section
from mlfilter_core.plan.estimates import Estimate
from mlfilter_core.plan.files_to_do import FilesToDo, find_files_to_do
from mlfilter_core.plan.findings import Findings
from mlfilter_core.plan.job_heads import check_heads, find_heads, heads_section
from mlfilter_core.plan.plan import Plan, PlannedWorkers, Section
from mlfilter_core.plan.resources import check_folders, check_memory, check_room, device_to_measure
from mlfilter_core.plan.slurm_advice import Work, speed_section
from mlfilter_core.plan.worker_memory import annotation_memory
from mlfilter_core.wording import plural, rate

if TYPE_CHECKING:
    from mlfilter_core.heads.head import Head

N_TRIED_FILES = 8


@dataclass(frozen=True)
class _Embeddings:
    """What the files of embeddings state.

    Attributes:
        rows: Number of rows of each readable file.
        dim: Width of the embeddings; 0 where no file is readable.
        encoder: Fingerprint of their encoder; empty where no file states it.
    """

    rows: Mapping[TaskFile, int]
    dim: int
    encoder: Fingerprint


def plan_annotation(job: AnnotationJob, workers: PlannedWorkers, seed: int, findings: Findings) -> Plan:
    """Checks a job against its embeddings, loads its heads, and scores some rows; draws nothing, whatever `seed` is.

    Writes none of the job's files. Problems go to `findings`.
    """
    params = job.params
    check_folders(job, findings)
    heads = find_heads(params, findings)
    files = find_files_to_do(
        job,
        annotation_workload,
        lambda: find_files(params.embeddings_directory, params.glob_pattern, EMBEDDING_SUFFIXES, written_by="embed"),
        findings,
    )
    embeddings = _read_embeddings(files.found, params, heads, findings)
    rows_to_do = {file: embeddings.rows[file] for file in files.to_do if file in embeddings.rows}
    sections = [_files_section(files, embeddings, sum(rows_to_do.values()))]
    if heads:
        sections.append(heads_section(heads))
    request = None
    if len(heads) == len(params.regression_head_checkpoints):
        with findings.noting():
            request = annotate_work(params).request
            score_columns(heads, request)
    device = device_to_measure(params.device, workers, findings)
    advice = ""
    if request is not None and device is not None and all(head.dim == embeddings.dim for head in heads):
        trial = try_annotation(evenly_spaced(list(rows_to_do), N_TRIED_FILES), request, heads, device, findings)
        if trial is not None:
            sections.append(_output_section(params, rows_to_do, trial, findings))
            speed, advice = _speed(workers, files, rows_to_do, trial, findings)
            sections.append(speed)
            sections.append(cost_section(_measured(rows_to_do, trial), job.price_per_hour, workers, findings))
    return Plan("annotate", sections, findings.problems, findings.warnings, advice)


def _read_embeddings(
    files: Sequence[TaskFile], params: AnnotationPipelineParameters, heads: Sequence["Head"], findings: Findings
) -> _Embeddings:
    """Reads what each file states; notes the heads that do not fit, and files of different encoders."""
    one_encoder = OneEncoder()
    rows: dict[TaskFile, int] = {}
    widths: list[int] = []
    checked: set[str] = set()
    for file in files:
        with findings.noting():
            with EmbeddingFile(file.path, params.hdf5_dataset_name) as embeddings:
                dim, made_by = embeddings.dim, fingerprint(embeddings.provenance)
                rows[file] = embeddings.n_rows
            widths.append(dim)
            kind = repr((dim, sorted(made_by.items())))
            if kind not in checked:  # a head that does not fit is reported once, not for each file
                checked.add(kind)
                check_heads(heads, params, made_by, dim, str(file.path), findings)
                one_encoder.check(file.path, made_by)
    return _Embeddings(rows, widths[0] if widths else 0, one_encoder.fingerprint)


def _files_section(files: FilesToDo, embeddings: _Embeddings, n_to_do: int) -> Section:
    facts = {
        "found": len(files.found),
        "readable": len(embeddings.rows),
        "finished": files.n_finished,
        "to_do": len(files.to_do),
        "rows": sum(embeddings.rows.values()),
        "rows_to_do": n_to_do,
        "dim": embeddings.dim,
        "encoder": dict(embeddings.encoder),
    }
    lines = [("files", f"{files}: {plural(n_to_do, 'document')}")]
    if embeddings.dim:
        made_by = name_of(embeddings.encoder) if embeddings.encoder else "an unknown encoder"
        lines.append(("embeddings", f"{embeddings.dim} dimensions, of {made_by}"))
    return Section("files", facts, lines)


def _output_section(
    params: AnnotationPipelineParameters, rows: Mapping[TaskFile, int], trial: AnnotationTrial, findings: Findings
) -> Section:
    needed = trial.bytes_per_row.times(sum(rows.values()))
    room, words = check_room(params.output_dir, needed, 2 * len(rows), findings)  # each has its provenance beside it
    first = next(iter(rows)).output(params.annotated_output_dir, SUFFIXES[params.compression])
    columns = [*params.output_keys, *trial.columns]
    return Section(
        "outputs",
        {"annotated": str(params.annotated_output_dir), "first": str(first), "columns": list(trial.columns), **room},
        [("outputs", f"{plural(len(rows), 'file')} such as {first}"), ("", ", ".join(columns)), ("", words)],
    )


def _measured(rows: Mapping[TaskFile, int], trial: AnnotationTrial) -> MeasuredSpeed:
    corpus_s, million_s = (Estimate.exact(n / trial.rows_per_s) for n in (sum(rows.values()), MILLION))
    return MeasuredSpeed(trial.device, trial.threads, corpus_s, million_s)


def _speed(
    workers: PlannedWorkers,
    files: FilesToDo,
    rows: Mapping[TaskFile, int],
    trial: AnnotationTrial,
    findings: Findings,
) -> tuple[Section, str]:
    """Returns how long the job takes, and the `slurm_settings` that suit it, as YAML."""
    n_rows = sum(rows.values())
    total_s = Estimate.exact(n_rows / trial.rows_per_s)
    memory = annotation_memory(trial.peak_bytes)
    check_memory(memory, workers, findings, "local_settings.workers")
    work = Work(total_s, functools.cache(replace(files, to_do=list(rows)).divided), memory)
    measured = {
        "device": trial.device,
        "documents_per_s": trial.rows_per_s,
        "measured_documents": trial.rows,
        "measured_seconds": trial.seconds,
    }
    words = f"{rate(trial.rows_per_s)} documents/s on this machine's {trial.device}"
    return speed_section(measured, [("speed", words)], work, workers)
