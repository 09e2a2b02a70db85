"""What is asked of one head, and whether it is finished.

Knows nothing about torch: a flow whose heads are all finished asks for no more.
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

SUFFIX = ".safetensors"


@dataclass(frozen=True)
class TrainRequest:
    """What is asked of one head.

    Attributes:
        name: Of the head.
        recipe: How it is trained.
        files: The files of embeddings.
        group: Name of their HDF5 group.
        test_fraction: Share of the documents that is held out.
        validation_fraction: Share of the others that tells the best epoch, with one fold.
        split_seed: Of the division.
        max_bytes: Of embeddings in memory.
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
        """What decides the head, but for the content of its inputs."""
        return {
            **self.recipe.model_dump(mode="json"),
            "group": self.group,
            "test_fraction": self.test_fraction,
            "validation_fraction": self.validation_fraction,
            "split_seed": self.split_seed,
        }

    def inputs(self) -> dict[str, Any]:
        """What tells one version of the inputs from another.

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
class TrainReport:
    """What became of one head.

    Attributes:
        head: Name of its file.
        output: Its file.
        status: `trained` now, or `skipped` because it was finished.
        documents: That have a label which counts: `trained_on + held_out`.
        trained_on: Documents that it was trained on, those that told the best epoch among them.
        held_out: Documents that tell how good it is.
        epochs: That it was trained for.
        metrics: On the held-out documents, by name; with several targets `<target>.<name>`.
        left_out: Rows and labels that took no part, by reason.
        remarks: What a person should know, in words.
        seconds: Wall time; 0 where skipped.
        worker: The process that did it; empty where skipped.
        started: When that began, in seconds since 1970, UTC; 0 where skipped.
    """

    PRINTED: ClassVar[Sequence[str]] = (
        *("documents", "trained_on", "held_out", "epochs"),
        *("spearman", "pearson", "mae", "r2", "accuracy", "macro_f1", "roc_auc", "seconds"),
    )
    SUMMED: ClassVar[Sequence[str]] = ()

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
        """Returns what was left out of each head's training, and what else a person should know."""
        remarks = []
        for report in reports:
            if report.left_out:
                counts = ", ".join(f"{n:,} {reason}" for reason, n in report.left_out.items())
                remarks.append(f"{report.head}: left out: {counts}")
            remarks += [f"{report.head}: {remark}" for remark in report.remarks]
        return remarks


def finished_head(request: TrainRequest, output: Path) -> TrainReport | None:
    """Returns the report of a finished head, or None where there is none yet.

    Raises:
        OutputConflictError: It was made by another request, from other embeddings or labels, or elsewhere.
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
    """Returns metrics in words: `spearman 0.617, mae 0.482`."""
    return ", ".join(f"{name} {'undefined' if value is None else f'{value:.3f}'}" for name, value in metrics.items())
