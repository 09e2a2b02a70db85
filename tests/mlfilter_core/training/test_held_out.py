import json
from pathlib import Path

import numpy as np

from mlfilter_core.embedding_store.reader import EmbeddingFile
from mlfilter_core.training.held_out import write_held_out
from mlfilter_core.training.labelled_rows import find_labelled_rows
from tests.mlfilter_core.training.conftest import WriteLabelled


def test_held_out_documents_are_written_with_their_labels(write_labelled: WriteLabelled, tmp_path: Path) -> None:
    files = [write_labelled("a.h5", n=9), write_labelled("b.h5", n=5, seed=1)]
    found = find_labelled_rows(files, "train", None, None, None)
    chosen = np.isin(np.arange(14), [1, 7, 8, 12])
    path = tmp_path / "heads" / "x.held_out.jsonl"
    write_held_out(path, found.places.select(chosen), found.labels[chosen], ())
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [record["document_id"] for record in records] == ["a-1", "a-7", "a-8", "b-3"]
    stored = []
    for file, rows in zip(files, ([1, 7, 8], [3]), strict=True):
        with EmbeddingFile(file, "train") as embeddings:
            stored += embeddings.array("labels", slice(None))[rows].tolist()
    assert [record["label"] for record in records] == stored


def test_labels_of_several_targets_are_written_by_name(write_labelled: WriteLabelled, tmp_path: Path) -> None:
    path = write_labelled(n=3, labels=[[1, 2], [3, 4], [5, 6]], label_keys=["x.a", "x.b"])
    found = find_labelled_rows([path], "train", None, None, None)
    write_held_out(tmp_path / "x.jsonl", found.places, found.labels, ("a", "b"))
    labels = [json.loads(line)["label"] for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    assert labels == [{"a": 1.0, "b": 2.0}, {"a": 3.0, "b": 4.0}, {"a": 5.0, "b": 6.0}]
