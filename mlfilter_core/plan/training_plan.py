"""What a training job would do and need."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlfilter_core.config.training import TrainingJob
from mlfilter_core.plan.device_here import device_here
from mlfilter_core.plan.estimates import Estimate
from mlfilter_core.plan.files_to_do import leave_out_finished
from mlfilter_core.plan.findings import Findings
from mlfilter_core.plan.output_room import check_folders, check_room
from mlfilter_core.plan.plan import Plan, PlannedWorkers, Section
from mlfilter_core.plan.wording import in_share
from mlfilter_core.training.divided_documents import divide_documents
from mlfilter_core.training.train_request import TrainRequest
from mlfilter_core.training.work import training_workload

FLOAT_BYTES = 4
FIGURE_BYTES = 200_000  # of a picture of a few thousand points, with the metrics
N_SHOWN_LABELS = 8
N_FILES_OF_A_HEAD = 3
HELD = ("min", "p25", "median", "p75", "max")


def plan_training(job: TrainingJob, workers: PlannedWorkers, seed: int, findings: Findings) -> Plan:
    """Checks a job against its embeddings and labels; writes nothing, and trains nothing.

    Args:
        job: The job.
        workers: The workers that it asks for.
        seed: Unused: all labels are read.
        findings: Takes what is wrong.
    """
    params = job.params
    check_folders(job, findings)
    device_here(params.device, workers, findings)
    sections: list[Section] = []
    workload = None
    with findings.noting():
        workload = training_workload(job)
    if workload is None:
        return Plan("train_head", sections, findings.problems, findings.warnings)
    requests: Mapping[str, TrainRequest] = workload.work.requests  # type: ignore[attr-defined]
    heads = leave_out_finished(workload, findings)
    files = next(iter(requests.values())).files
    words = f"{len(files):,} of embeddings; of {len(requests)} heads, {heads.n_finished} are finished"
    sections.append(
        Section(
            "files",
            {"embeddings": len(files), "heads": len(requests), "finished": heads.n_finished},
            [("files", words)],
        )
    )
    own = [_head_section(requests[file.stem], findings) for file in heads.to_do]
    planned = [section for section, _ in own if section is not None]
    if planned:
        lines = [line for section in planned for line in section.lines]
        sections.append(Section("heads", {section.name: section.facts for section in planned}, lines))
    n_bytes = sum(head_bytes for _, head_bytes in own)
    if heads.to_do:
        needed = Estimate(n_bytes, n_bytes, n_bytes)
        room, words = check_room(params.output_dir, needed, N_FILES_OF_A_HEAD * len(heads.to_do), findings)
        names = f"{params.heads_dir}/{{{','.join(file.stem for file in heads.to_do)}}}"
        sections.append(
            Section("outputs", {"heads": str(params.heads_dir), **room}, [("outputs", f"{names}; {words}")])
        )
    return Plan("train_head", sections, findings.problems, findings.warnings)


def _head_section(request: TrainRequest, findings: Findings) -> tuple[Section | None, float]:
    """Returns what there is to train one head on, and how large its files will be."""
    parts = None
    before = len(findings.problems)
    with findings.noting(f"head {request.name}: an input cannot be read"):
        parts = divide_documents(request)
    if parts is None:
        own = findings.problems[before:]
        findings.problems[before:] = [
            problem if problem.startswith("head ") else f"head {request.name}: {problem}" for problem in own
        ]
        return None, 0.0
    found, task = parts.found, parts.task
    n_held_out = int(parts.held_out.sum())
    bad_lines = dict(parts.table.bad_lines.counts) if parts.table else {}
    facts: dict[str, Any] = {
        "documents": len(found.labels),
        "trained_on": len(found.labels) - n_held_out,
        "held_out": n_held_out,
        "left_out": {**bad_lines, **found.left_out},
        "task": task.kind,
        "targets": [_distribution(found.labels[:, i]) for i in range(found.labels.shape[1])],
        "dim": found.dim,
    }
    for remark in found.remarks:
        findings.add_warning(f"head {request.name}: {remark}")
    n_without = found.left_out.get("without_label", 0)
    left_out = ", ".join(f"{n:,} {reason}" for reason, n in facts["left_out"].items())
    lines = [
        (
            request.name,
            f"{task.kind}: {len(found.labels):,} labelled documents, {n_held_out:,} of them held out"
            + (f"; {in_share(n_without, n_without + len(found.labels))} have no label" if n_without else ""),
        )
    ]
    if left_out:
        lines.append(("", f"left out: {left_out}"))
    names = task.names if task.kind == "regression" and task.names else [""] * found.labels.shape[1]
    for name, target in zip(names, facts["targets"], strict=True):
        lines.append(("", f"{name + ': ' if name else ''}{_in_words(target)}"))
    widths = (found.dim, *request.recipe.hidden_dims, task.n_outputs)
    n_weights = sum(one * other + other for one, other in pairwise(widths))
    return Section(request.name, facts, lines), n_weights * FLOAT_BYTES + FIGURE_BYTES


def _distribution(labels: NDArray[np.float32]) -> dict[str, Any]:
    """Returns quantiles of a label, and how often each value is there, where they are few."""
    values, counts = np.unique(labels, return_counts=True)
    facts: dict[str, Any] = dict(zip(HELD, np.quantile(labels, [0, 0.25, 0.5, 0.75, 1]).tolist(), strict=True))
    facts |= {"mean": float(labels.mean()), "distinct": len(values)}
    if len(values) <= N_SHOWN_LABELS:
        facts["counts"] = {f"{value:g}": int(n) for value, n in zip(values, counts, strict=True)}
    return facts


def _in_words(target: dict[str, Any]) -> str:
    if "counts" in target:
        return "labels " + ", ".join(f"{value}: {n:,}" for value, n in target["counts"].items())
    quantiles = ", ".join(f"{name} {target[name]:.3g}" for name in HELD)
    return f"{target['distinct']:,} different labels: {quantiles}"
