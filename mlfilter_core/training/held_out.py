"""The labels of the held-out documents, as a file for `evaluate_predicted_annotations`."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import orjson
from numpy.typing import NDArray

from mlfilter_core.files.new_file import open_new
from mlfilter_core.files.publishing import publish
from mlfilter_core.training.labelled_rows import id_column
from mlfilter_core.training.row_buffers import RowPlaces


def write_held_out(path: Path, places: RowPlaces, labels: NDArray[np.float32], targets: Sequence[str]) -> None:
    """Writes one line for each document: `{"document_id":"x-1","label":3.0}`.

    Args:
        path: The JSONL file; replaced where it exists.
        places: Places of n documents.
        labels: float32 (n, n_targets).
        targets: Names of several targets, for `"label":{"education":3.0,"fun":1.0}`; empty for one target.
    """
    with publish(path) as temporary, open_new(temporary) as file:
        for document_id, values in zip(document_ids(places), labels.tolist(), strict=True):
            label = dict(zip(targets, values, strict=True)) if targets else values[0]
            file.write(orjson.dumps({"document_id": document_id, "label": label}, option=orjson.OPT_APPEND_NEWLINE))


def document_ids(places: RowPlaces) -> Iterator[str]:
    """Yields the id of each document."""
    for positions in places.blocks():
        with places.open_block(positions) as (file, rows, chosen):
            ids = file.column(id_column(file), rows)
        yield from (str(ids[i]) for i in chosen.tolist())
