"""Labelled embeddings to one head, with its evaluation."""

import json
import logging
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from mlfilter_core.files.new_file import open_new
from mlfilter_core.files.publishing import publish
from mlfilter_core.heads.head import Head, score
from mlfilter_core.heads.layers import mlp
from mlfilter_core.heads.trained_head import TrainedHead, write_head
from mlfilter_core.training.divided_documents import DividedDocuments, divide_documents
from mlfilter_core.training.fit_head import FittedHead, TrainingSet, fit_head
from mlfilter_core.training.head_task import label_weights
from mlfilter_core.training.held_out import write_held_out
from mlfilter_core.training.metrics import head_metrics
from mlfilter_core.training.row_buffers import RowBuffers
from mlfilter_core.training.train_request import (
    FIGURE_SUFFIX,
    HELD_OUT_SUFFIX,
    METRICS_SUFFIX,
    SUFFIX,
    TrainReport,
    TrainRequest,
    describe_metrics,
)
from mlfilter_core.training.training_figure import draw_training
from mlfilter_core.versions import library_versions
from mlfilter_core.work.progress import Progress, ProgressTeller
from mlfilter_core.work.workload import facts_of

_log = logging.getLogger(__name__)


def train_head(request: TrainRequest, output: Path, device: torch.device) -> TrainReport:
    """Trains one head.

    Writes `<name>.metrics.json`, `<name>.svg` and `<name>.held_out.jsonl` beside the head, and the head last.

    Args:
        request: Request of the training.
        output: File of the head; replaced where it exists.
        device: Device to train on.

    Raises:
        TrainingError: There are too few labels, they do not fit the task, or the training diverges.
        FileError: A file cannot be read.
        OSError: Reading or writing failed.
    """
    started = time.monotonic()
    inputs = request.inputs()
    documents = divide_documents(request)
    found, task, held_out = documents.found, documents.task, documents.held_out
    fitted = _fit(request, documents, device)
    head = Head(
        name=request.name,
        layers=mlp(fitted.weights, fitted.biases, request.recipe.activation),
        encoder=found.encoder,
        task=task.kind,
        labels=task.names,
    )
    places, labels = found.places.select(held_out), found.labels[held_out]
    outputs = _outputs(head, RowBuffers(places, found.dim, request.max_bytes))
    report = TrainReport(
        head=f"{request.name}{SUFFIX}",
        output=str(output),
        status="trained",
        documents=len(found.labels),
        trained_on=len(found.labels) - len(labels),
        held_out=len(labels),
        epochs=fitted.epochs,
        metrics=head_metrics(task, outputs, labels),
        left_out=dict(found.left_out),
        remarks=_remarks(documents),
        seconds=time.monotonic() - started,
    )
    has_output = documents.folds >= 0
    training = {
        "request": request.provenance(),
        **inputs,
        **{name: value for name, value in facts_of(report).items() if name not in ("output", "status", "seconds")},
        "metrics_of_folds": head_metrics(task, fitted.left_out[has_output], found.labels[~held_out][has_output]),
        "training_loss": fitted.training_loss,
        "validation_loss": fitted.validation_loss,
        "versions": library_versions(),
    }
    targets = task.names if task.kind in ("regression", "multilabel") else ()
    write_held_out(output.with_suffix(HELD_OUT_SUFFIX), places, labels, targets)
    with publish(output.with_suffix(FIGURE_SUFFIX)) as temporary:
        draw_training(temporary, request.name, fitted, outputs[:, 0], labels[:, 0])
    trained = TrainedHead(
        *(fitted.weights, fitted.biases, request.recipe.activation, head.task, head.labels, head.encoder, training)
    )
    _write(output, trained)
    _log.info(
        "%s: %d epochs over %d documents in %.1f s; %s",
        *(request.name, fitted.epochs, report.trained_on, report.seconds, describe_metrics(report.metrics)),
    )
    return report


def _fit(request: TrainRequest, documents: DividedDocuments, device: torch.device) -> FittedHead:
    found, is_trained_on = documents.found, ~documents.held_out
    labels = found.labels[is_trained_on]
    rows = RowBuffers(found.places.select(is_trained_on), found.dim, request.max_bytes)
    training_set = TrainingSet(rows, labels, label_weights(labels, request.recipe.balance), documents.folds)
    teller = ProgressTeller()

    def tell(epoch: int) -> None:
        if teller.is_due():
            teller.tell(Progress(f"{request.name}{SUFFIX}", len(labels), share=epoch / request.recipe.max_epochs))

    return fit_head(training_set, request.recipe, documents.task, device, tell)


def _outputs(head: Head, rows: RowBuffers) -> NDArray[np.float32]:
    """Returns the outputs of a head, computed as an annotation job computes them."""
    return np.concatenate([score([head], embeddings) for _, embeddings in rows.in_order()])


def _remarks(documents: DividedDocuments) -> tuple[str, ...]:
    return (
        *(documents.table.remarks if documents.table else ()),
        *documents.found.remarks,
        *(() if documents.found.encoder else ("neither the embeddings nor the head state their encoder",)),
    )


def _write(output: Path, head: TrainedHead) -> None:
    with publish(output.with_suffix(METRICS_SUFFIX)) as temporary, open_new(temporary) as file:
        file.write(json.dumps(head.training, indent=2, ensure_ascii=False).encode() + b"\n")
    with publish(output) as temporary:
        write_head(temporary, head)
