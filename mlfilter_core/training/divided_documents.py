"""The labelled documents of a head, split into the documents to train on and the held-out set."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlfilter_core.config.training import HeadRecipe
from mlfilter_core.errors import TrainingError
from mlfilter_core.training.head_task import HeadTask, head_task
from mlfilter_core.training.label_table import LabelTable, label_files, read_labels
from mlfilter_core.training.labelled_rows import LabelledRows, find_labelled_rows
from mlfilter_core.training.splits import fold_numbers, is_held_out
from mlfilter_core.training.train_request import TrainRequest

AUTO_FOLDS, AUTO_FOLDS_BELOW = 5, 20_000  # documents; from there on, one fold finds the best epoch as well


@dataclass(frozen=True)
class DividedDocuments:
    """The n documents with a label.

    Attributes:
        table: Labels by id; None where the files of embeddings contain the labels.
        found: Rows and labels of the documents.
        task: Task of the head.
        held_out: bool (n,), whether a document is held out for evaluation.
        folds: int8 (n_trained_on,), from `fold_numbers`, for the documents that are not held out.
    """

    table: LabelTable | None
    found: LabelledRows
    task: HeadTask
    held_out: NDArray[np.bool_]
    folds: NDArray[np.int8]


def divide_documents(request: TrainRequest) -> DividedDocuments:
    """Reads the labels and splits the documents; reads no embeddings.

    Raises:
        TrainingError: There are too few labels, or they do not fit the task.
        FileError: A file cannot be read.
        ConfigError: The files were made by different encoders.
        OSError: Reading failed.
    """
    table = _table(request.recipe)
    found = _labelled(request, table)
    task = head_task(request.recipe, found.labels)
    held_out = is_held_out(found.hashes, request.test_fraction, request.split_seed)
    _check_parts(held_out)
    folds = _folds(found.hashes[~held_out], request)
    _check_vary(found.labels[~held_out])
    return DividedDocuments(table, found, task, held_out, folds)


def _table(recipe: HeadRecipe) -> LabelTable | None:
    if recipe.labels_path is None:
        return None
    return read_labels(label_files(recipe.labels_path), recipe.label_key, recipe.id_key, recipe.scale)


def _labelled(request: TrainRequest, table: LabelTable | None) -> LabelledRows:
    recipe = request.recipe
    keys = (recipe.label_key,) if isinstance(recipe.label_key, str) else recipe.label_key
    return find_labelled_rows(request.files, request.group, keys, None if table is None else table.by_id, recipe.scale)


def _check_parts(held_out: NDArray[np.bool_]) -> None:
    n_held_out = int(held_out.sum())
    if not 0 < n_held_out < len(held_out):
        raise TrainingError(
            f"of {len(held_out)} documents with labels, {n_held_out} are held out; label more, or change test_fraction "
            "or split_seed"
        )


def _check_vary(labels: NDArray[np.float32]) -> None:
    constant = np.flatnonzero(np.ptp(labels, axis=0) == 0)
    if len(constant):
        raise TrainingError(
            f"all {len(labels)} labels that are not held out are {labels[0, constant[0]]:g}; label more documents, or "
            "change split_seed"
        )


def _folds(hashes: NDArray[np.uint64], request: TrainRequest) -> NDArray[np.int8]:
    asked = request.recipe.folds
    n_folds = asked if asked != "auto" else AUTO_FOLDS if len(hashes) < AUTO_FOLDS_BELOW else 1
    n_texts = len(np.unique(hashes))
    if n_texts < max(2, n_folds):
        raise TrainingError(
            f"{len(hashes)} documents with {n_texts} different texts are too few for {n_folds} folds; label more, or "
            "lower folds"
        )
    return fold_numbers(hashes, n_folds, request.validation_fraction, request.split_seed)
