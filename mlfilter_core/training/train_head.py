"""Labelled embeddings to one head, with what tells how good it is."""

import json
import logging
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mlfilter_core.config.training import HeadRecipe
from mlfilter_core.files.new_file import open_new
from mlfilter_core.files.publishing import publish
from mlfilter_core.heads.head import Head, score
from mlfilter_core.heads.trained_head import TrainedHead, write_head
from mlfilter_core.training.divided_documents import divide_documents
from mlfilter_core.training.fit_head import FitSettings, FittedHead, fit_head
from mlfilter_core.training.head_task import HeadTask, label_weights
from mlfilter_core.training.held_out import write_held_out
from mlfilter_core.training.label_table import LabelTable
from mlfilter_core.training.labelled_rows import LabelledRows
from mlfilter_core.training.row_buffers import RowBuffers
from mlfilter_core.training.train_request import SUFFIX, TrainReport, TrainRequest, describe_metrics
from mlfilter_core.training.training_figure import draw_training
from mlfilter_core.versions import library_versions
from mlfilter_core.work.progress import Progress, ProgressTeller

METRICS_SUFFIX, FIGURE_SUFFIX, HELD_OUT_SUFFIX = ".metrics.json", ".svg", ".held_out.jsonl"

_log = logging.getLogger(__name__)


def train_head(request: TrainRequest, output: Path, device: torch.device) -> TrainReport:
    """Trains one head.

    Beside its file lie `<name>.metrics.json`, `<name>.svg` and `<name>.held_out.jsonl`, which appear before it.

    Args:
        request: What to train, on what.
        output: File of the head; replaced where it exists.
        device: Where it is trained.

    Raises:
        TrainingError: There are too few labels, or no head can learn from them.
        FileError: A file cannot be read.
        OSError: Reading or writing failed.
    """
    started = time.monotonic()
    recipe = request.recipe
    inputs = request.inputs()
    parts = divide_documents(request)
    table, found, task, held_out, folds = parts.table, parts.found, parts.task, parts.held_out, parts.folds
    rows, labels = found.places.select(~held_out), found.labels[~held_out]
    teller = ProgressTeller()

    def told(epoch: int) -> None:
        if teller.is_due():
            teller.tell(Progress(f"{request.name}{SUFFIX}", len(labels), share=epoch / recipe.max_epochs))

    fitted = fit_head(
        RowBuffers(rows, found.dim, request.max_bytes),
        labels,
        label_weights(labels, recipe.balance),
        folds,
        _settings(recipe, task),
        device,
        told,
    )
    head = Head(
        *(request.name, "", fitted.weights, fitted.biases, recipe.activation, found.encoder, task.kind, task.names)
    )
    given = _outputs(head, RowBuffers(found.places.select(held_out), found.dim, request.max_bytes))
    report = TrainReport(
        *(f"{request.name}{SUFFIX}", str(output), "trained", len(found.labels), len(rows), len(given), fitted.epochs),
        metrics=task.metrics(given, found.labels[held_out]),
        left_out={**(table.bad_lines.counts if table else {}), **found.left_out},
        remarks=_remarks(table, found),
        seconds=time.monotonic() - started,
    )
    has_prediction = folds >= 0
    training = {
        "request": request.provenance(),
        **inputs,
        **{name: value for name, value in asdict(report).items() if name not in ("output", "status", "seconds")},
        "metrics_of_folds": task.metrics(fitted.left_out[has_prediction], labels[has_prediction]),
        "training_loss": fitted.training_loss,
        "validation_loss": fitted.validation_loss,
        "versions": library_versions(),
    }
    targets = task.names if task.kind == "regression" else ()
    write_held_out(output.with_suffix(HELD_OUT_SUFFIX), found.places.select(held_out), found.labels[held_out], targets)
    _write(output, head, training, fitted, given, found.labels[held_out])
    _log.info(
        *("%s: %d epochs over %d documents, in %.1f s; %s", request.name, fitted.epochs, report.trained_on),
        *(report.seconds, describe_metrics(report.metrics)),
    )
    return report


def _settings(recipe: HeadRecipe, task: HeadTask) -> FitSettings:
    return FitSettings(
        task=task.kind,
        n_outputs=task.n_outputs,
        hidden_dims=recipe.hidden_dims,
        activation=recipe.activation,
        dropout=recipe.dropout,
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        batch_size=recipe.batch_size,
        max_epochs=recipe.max_epochs,
        patience=recipe.patience,
        seed=recipe.seed,
    )


def _outputs(head: Head, rows: RowBuffers) -> NDArray[np.float32]:
    """Returns what a head gives, computed as an annotation job computes it."""
    return np.concatenate([score([head], embeddings) for _, embeddings in rows.in_order()])


def _remarks(table: LabelTable | None, found: LabelledRows) -> tuple[str, ...]:
    bad_lines = (f"lines that give no label: {table.bad_lines}",) if table and table.bad_lines else ()
    nameless = (
        () if found.encoder else ("the embeddings do not say which encoder made them, and neither does the head",)
    )
    return (*bad_lines, *found.remarks, *nameless)


def _write(
    output: Path,
    head: Head,
    training: dict[str, Any],
    fitted: FittedHead,
    given: NDArray[np.float32],
    labels: NDArray[np.float32],
) -> None:
    """Writes the head last: where it is, the others are too."""
    trained = TrainedHead(head.weights, head.biases, head.activation, head.task, head.labels, head.encoder, training)
    with publish(output.with_suffix(FIGURE_SUFFIX)) as temporary:
        draw_training(
            *(
                temporary,
                head.name,
                fitted.training_loss,
                fitted.validation_loss,
                fitted.epochs,
                given[:, 0],
                labels[:, 0],
            )
        )
    with publish(output.with_suffix(METRICS_SUFFIX)) as temporary, open_new(temporary) as file:
        file.write(json.dumps(training, indent=2, ensure_ascii=False).encode() + b"\n")
    with publish(output) as temporary:
        write_head(temporary, trained)
