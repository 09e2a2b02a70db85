"""What a training job would do and need."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlfilter_core.config.training import TrainingJob, TrainingParameters
from mlfilter_core.errors import MlfilterError, in_one_line
from mlfilter_core.plan.estimates import Estimate
from mlfilter_core.plan.files_to_do import FilesToDo, leave_out_finished
from mlfilter_core.plan.findings import Findings
from mlfilter_core.plan.plan import Plan, PlannedWorkers, Section
from mlfilter_core.plan.resources import check_folders, check_room, device_to_measure
from mlfilter_core.training.divided_documents import DividedDocuments, divide_documents
from mlfilter_core.training.train_request import TrainRequest
from mlfilter_core.training.work import training_workload
from mlfilter_core.wording import plural, rough_share

FLOAT_BYTES = 4
FIGURE_BYTES = 200_000  # a figure of a few thousand points, with the metrics
N_FILES_OF_A_HEAD = 3
N_SHOWN_LABELS = 8
QUANTILES = {"min": 0.0, "p25": 0.25, "median": 0.5, "p75": 0.75, "max": 1.0}


def plan_training(job: TrainingJob, workers: PlannedWorkers, seed: int, findings: Findings) -> Plan:
    """Checks a job against its embeddings and labels; draws nothing, whatever `seed` is.

    Trains and writes nothing. Problems go to `findings`.
    """
    check_folders(job, findings)
    device_to_measure(job.params.device, workers, findings)
    workload = None
    with findings.noting():
        workload = training_workload(job)
    if workload is None:
        return Plan("train_head", [], findings.problems, findings.warnings)
    requests: Mapping[str, TrainRequest] = workload.work.requests  # type: ignore[attr-defined]
    heads = leave_out_finished(workload, findings)
    sections = [_files_section(requests, heads)]
    trainable = {}
    for file in heads.to_do:
        parts = _divide(requests[file.stem], findings)
        if parts is not None:
            trainable[file.stem] = parts
    if trainable:
        own = [_head_section(name, parts, findings) for name, parts in trainable.items()]
        lines = [line for section in own for line in section.lines]
        sections.append(Section("heads", {section.name: section.facts for section in own}, lines))
    if heads.to_do:
        n_bytes = sum(_head_bytes(requests[name], parts) for name, parts in trainable.items())
        sections.append(_output_section(job.params, heads, n_bytes, findings))
    return Plan("train_head", sections, findings.problems, findings.warnings)


def _files_section(requests: Mapping[str, TrainRequest], heads: FilesToDo) -> Section:
    n_files = len(next(iter(requests.values())).files)
    words = f"{plural(n_files, 'file')} of embeddings; {plural(len(requests), 'head')}, {heads.n_finished} finished"
    facts = {"embeddings": n_files, "heads": len(requests), "finished": heads.n_finished}
    return Section("files", facts, [("files", words)])


def _divide(request: TrainRequest, findings: Findings) -> DividedDocuments | None:
    try:
        return divide_documents(request)
    except MlfilterError as error:
        problem = str(error)
    except OSError as error:  # HDF5's have no strerror
        problem = f"an input cannot be read ({error.strerror or in_one_line(error)})"
    findings.add_problem(problem if problem.startswith("head ") else f"head {request.name}: {problem}")
    return None


def _head_section(name: str, parts: DividedDocuments, findings: Findings) -> Section:
    """Returns the facts about the labelled documents of one head."""
    found, task = parts.found, parts.task
    n_documents, n_labels = found.labels.shape
    n_held_out = int(parts.held_out.sum())
    targets = [_distribution(found.labels[:, i]) for i in range(n_labels)]
    for remark in (*(parts.table.remarks if parts.table else ()), *found.remarks):
        findings.add_warning(f"head {name}: {remark}")
    n_unlabelled = found.left_out.get("without_label", 0)
    words = f"{task.kind}: {n_documents:,} labelled documents, {n_held_out:,} of them held out"
    if n_unlabelled:
        words += f"; {rough_share(n_unlabelled, n_unlabelled + n_documents)} have no label"
    lines = [(name, words)]
    if found.left_out:
        lines.append(("", "left out: " + ", ".join(f"{n:,} {reason}" for reason, n in found.left_out.items())))
    names = task.names if task.kind in ("regression", "multilabel") and task.names else [""] * n_labels
    for label, target in zip(names, targets, strict=True):
        lines.append(("", f"{label}: {_in_words(target)}" if label else _in_words(target)))
    facts: dict[str, Any] = {
        "documents": n_documents,
        "trained_on": n_documents - n_held_out,
        "held_out": n_held_out,
        "left_out": dict(found.left_out),
        "task": task.kind,
        "targets": targets,
        "dim": found.dim,
    }
    return Section(name, facts, lines)


def _head_bytes(request: TrainRequest, parts: DividedDocuments) -> int:
    """Returns the size of the files of one head."""
    widths = (parts.found.dim, *request.recipe.hidden_dims, parts.task.n_outputs)
    return FIGURE_BYTES + FLOAT_BYTES * sum((n_in + 1) * n_out for n_in, n_out in pairwise(widths))


def _output_section(params: TrainingParameters, heads: FilesToDo, n_bytes: int, findings: Findings) -> Section:
    n_files = N_FILES_OF_A_HEAD * len(heads.to_do)
    room, words = check_room(params.output_dir, Estimate.exact(n_bytes), n_files, findings)
    names = ",".join(file.stem for file in heads.to_do)
    lines = [("outputs", f"{params.heads_dir}/{{{names}}}; {words}")]
    return Section("outputs", {"heads": str(params.heads_dir), **room}, lines)


def _distribution(labels: NDArray[np.float32]) -> dict[str, Any]:
    """Returns quantiles of a label, and how often each value occurs where there are few values."""
    values, counts = np.unique(labels, return_counts=True)
    quantiles = np.quantile(labels, list(QUANTILES.values())).tolist()
    facts: dict[str, Any] = dict(zip(QUANTILES, quantiles, strict=True))
    facts |= {"mean": float(labels.mean()), "distinct": len(values)}
    if len(values) <= N_SHOWN_LABELS:
        facts["counts"] = {f"{value:g}": int(n) for value, n in zip(values, counts, strict=True)}
    return facts


def _in_words(target: Mapping[str, Any]) -> str:
    if "counts" in target:
        return "labels " + ", ".join(f"{value}: {n:,}" for value, n in target["counts"].items())
    quantiles = ", ".join(f"{name} {target[name]:.3g}" for name in QUANTILES)
    return f"{target['distinct']:,} different labels: {quantiles}"
