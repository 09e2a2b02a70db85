"""The request and the report of one head.

Does not import torch: a flow whose heads are all finished does not need it.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from mlfilter_core.config.training import HeadRecipe
from mlfilter_core.embedding_store.reader import EmbeddingFile
from mlfilter_core.errors import HeadError, OutputConflictError
from mlfilter_core.files.identity import file_sha256
from mlfilter_core.heads.trained_head import read_training
from mlfilter_core.training.label_table import label_files
from mlfilter_core.work.same_request import REPLACE, check_same_request
from mlfilter_core.work.workload import ReportDefaults

SUFFIX = ".safetensors"
METRICS_SUFFIX, FIGURE_SUFFIX, HELD_OUT_SUFFIX = ".metrics.json", ".svg", ".held_out.jsonl"  # of files beside a head


@dataclass(frozen=True)
class TrainRequest:
    """The settings and inputs of one head.

    Attributes:
        name: Name of the head.
        recipe: Labels, task and hyperparameters.
        files: Files of embeddings.
        group: Name of their HDF5 group.
        test_fraction: Share of the documents that is held out for evaluation.
        validation_fraction: Share of the other documents that a single fold leaves out to find the best epoch.
        split_seed: Seed of the split.
        max_bytes: Most bytes of embeddings in memory.
    """

    name: str
    recipe: HeadRecipe
    files: Sequence[Path]
    group: str = "train"
    test_fraction: float = 0.2
    validation_fraction: float = 0.1
    split_seed: int = 0
    max_bytes: int = 4 << 30

    def provenance(self) -> dict[str, Any]:
        """Returns what the head depends on besides the content of its inputs."""
        return {
            **self.recipe.model_dump(mode="json"),
            "group": self.group,
            "test_fraction": self.test_fraction,
            "validation_fraction": self.validation_fraction,
            "split_seed": self.split_seed,
        }

    def inputs(self) -> dict[str, Any]:
        """Returns digests of the inputs.

        Raises:
            EmbeddingFileError: A file of embeddings cannot be read.
        """
        embeddings = hashlib.sha256()
        for path in self.files:
            with EmbeddingFile(path, self.group) as file:
                embeddings.update(json.dumps(file.identity(), sort_keys=True).encode())
        labels = [file_sha256(path) for path in label_files(self.recipe.labels_path)] if self.recipe.labels_path else []
        return {"embeddings_sha256": embeddings.hexdigest(), "labels_sha256": labels}


@dataclass(frozen=True)
class TrainReport(ReportDefaults):
    """The result of training one head.

    Attributes:
        head: Name of its file.
        output: Path of its file.
        status: `trained`, or `skipped` where the head was finished before.
        documents: Number of documents with a valid label: `trained_on + held_out`.
        trained_on: Number of documents to train on, including those that folds leave out to find the best epoch.
        held_out: Number of documents held out for evaluation.
        epochs: Epoch that the head is taken from, counted from 1.
        metrics: Metrics on the held-out documents, by name; `<target>.<name>` with several targets or labels.
        left_out: Number of rows and labels that are not used, by reason.
        remarks: Warnings.
        seconds: Wall time; 0 where skipped.
        worker: Name of the process; empty where skipped.
        started: Start time in seconds since 1970, UTC; 0 where skipped.
    """

    PRINTED: ClassVar[Sequence[str]] = (
        *("documents", "trained_on", "held_out", "epochs"),
        *("spearman", "pearson", "mae", "r2", "accuracy", "macro_f1", "roc_auc", "seconds"),
    )
    SUMMED: ClassVar[Sequence[str]] = ()
    SPREAD: ClassVar[Sequence[str]] = ("metrics",)

    head: str
    output: str
    status: Literal["trained", "skipped"]
    documents: int
    trained_on: int
    held_out: int
    epochs: int
    metrics: Mapping[str, float | None]
    left_out: dict[str, int] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    seconds: float = 0.0
    worker: str = ""
    started: float = 0.0

    @staticmethod
    def remarks_on(reports: "Sequence[TrainReport]") -> list[str]:
        """Returns what was left out of the training of each head, and its warnings."""
        remarks = []
        for report in reports:
            if report.left_out:
                counts = ", ".join(f"{n:,} {reason}" for reason, n in report.left_out.items())
                remarks.append(f"{report.head}: left out: {counts}")
            remarks += [f"{report.head}: {remark}" for remark in report.remarks]
        return remarks


def finished_head(request: TrainRequest, output: Path) -> TrainReport | None:
    """Returns the report of a finished head, or None where it has yet to be trained.

    Raises:
        OutputConflictError: The head was made by another request, from other inputs, or by another tool.
    """
    if not output.exists():
        return None
    try:
        made = read_training(output)
    except HeadError as error:
        raise OutputConflictError(f"{error}; {REPLACE}") from error
    if made is None:
        raise OutputConflictError(f"{output} was not trained here; {REPLACE}")
    inputs = request.inputs()
    made_by = {**made["request"], **{name: made.get(name) for name in inputs}}
    check_same_request(output, made_by, {**request.provenance(), **inputs})
    fields = {name: made[name] for name in TrainReport.__dataclass_fields__ if name in made}
    return TrainReport(**{**fields, "output": str(output), "status": "skipped", "remarks": tuple(made["remarks"])})


def describe_metrics(metrics: Mapping[str, float | None]) -> str:
    """Returns metrics as text: `spearman 0.617, mae 0.482`."""
    return ", ".join(f"{name} {'undefined' if value is None else f'{value:.3f}'}" for name, value in metrics.items())
