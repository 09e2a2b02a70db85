from pathlib import Path

import h5py
import numpy as np
import pytest

from mlfilter_core.corpus.documents import hash_text
from mlfilter_core.embedding_store.layout import CHUNK_ROWS
from mlfilter_core.errors import ConfigError, TrainingError
from mlfilter_core.training.labelled_rows import find_labelled_rows
from tests.mlfilter_core.training.conftest import DIM, WriteLabelled, embeddings_of, label_of


def test_labels_of_all_files_are_found(write_labelled: WriteLabelled) -> None:
    files = [write_labelled("a.h5", CHUNK_ROWS + 3), write_labelled("b.h5", 4, seed=1)]
    found = find_labelled_rows(files, "train", None, None, None)
    assert found.places.files == tuple(files)
    assert found.places.file_of.tolist() == [0] * (CHUNK_ROWS + 3) + [1] * 4
    assert found.places.row_of.tolist() == [*range(CHUNK_ROWS + 3), *range(4)]
    np.testing.assert_array_equal(found.labels[-4:, 0], label_of(embeddings_of(4, 1)))
    assert found.hashes[-1] == hash_text("b.h5 3")
    assert (found.dim, found.encoder["weights_sha256"], found.left_out, found.remarks) == (DIM, "a" * 64, {}, [])


def test_labels_are_chosen_by_their_keys(write_labelled: WriteLabelled) -> None:
    path = write_labelled(n=3, labels=[[1, 2], [3, 4], [5, 6]], label_keys=["s.a", "s.b"])
    assert find_labelled_rows([path], "train", ["s.b"], None, None).labels.tolist() == [[2], [4], [6]]
    assert find_labelled_rows([path], "train", None, None, None).labels.tolist() == [[1, 2], [3, 4], [5, 6]]
    with pytest.raises(TrainingError, match=r'x.h5 contains no label "s.c"; it contains: s.a, s.b'):
        find_labelled_rows([path], "train", ["s.c"], None, None)


def test_labels_outside_the_scale_or_not_finite_are_left_out_and_counted(write_labelled: WriteLabelled) -> None:
    path = write_labelled(n=6, labels=[0, 5, -1, 6, np.inf, np.nan])
    found = find_labelled_rows([path], "train", None, None, (0, 5))
    assert found.places.row_of.tolist() == [0, 1]
    assert found.left_out == {"outside_scale": 2, "not_finite": 1, "without_label": 1}


def test_labels_are_joined_by_id(write_labelled: WriteLabelled) -> None:
    path = write_labelled(n=5, label_keys=None)
    found = find_labelled_rows([path], "train", None, {"x-3": (1.0,), "x-1": (2.0,), "y": (0.0,)}, None)
    assert found.places.row_of.tolist() == [1, 3]
    assert found.labels.tolist() == [[2], [1]]
    assert found.left_out == {"without_label": 3, "label_without_document": 1}
    assert found.remarks == ["1 labels are of no document here, such as y"]


def test_labels_of_other_documents_are_refused_with_examples(write_labelled: WriteLabelled) -> None:
    labels = {f"doc-{i}": (1.0,) for i in range(5)}
    message = (
        r"no label is of a document here \(5 without_label, 5 label_without_document\): .*doc-0, doc-1, doc-2, \.\.\."
    )
    with pytest.raises(TrainingError, match=message):
        find_labelled_rows([write_labelled(n=5)], "train", None, labels, None)


def test_files_without_labels_are_refused(write_labelled: WriteLabelled) -> None:
    with pytest.raises(
        TrainingError, match=r"contains no labels; set labels_path of the head, set params\.glob_pattern to"
    ):
        find_labelled_rows([write_labelled(n=5, label_keys=None)], "train", None, None, None)
    with pytest.raises(TrainingError, match=r"no document has a valid label \(5 outside_scale\)"):
        find_labelled_rows([write_labelled(n=5, labels=[9] * 5)], "train", None, None, (0, 5))


def test_embeddings_of_two_encoders_are_refused(write_labelled: WriteLabelled) -> None:
    files = [write_labelled("a.h5"), write_labelled("b.h5", weights_sha256="c" * 64)]
    with pytest.raises(ConfigError, match=r"a.h5 and .*b.h5 were made by different encoders.*differ in weights_sha256"):
        find_labelled_rows(files, "train", None, None, None)


def test_a_file_of_another_tool_is_split_by_its_ids(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["train/embeddings"] = np.zeros((2, 3), np.float32)
        file["train/labels"] = np.array([1, 2])
        file["train/document_id"] = ["a", "b"]
    found = find_labelled_rows([tmp_path / "x.h5"], "train", ["score"], None, None)
    assert found.labels.tolist() == [[1], [2]]
    assert found.hashes.tolist() == [hash_text("a"), hash_text("b")]
    assert found.encoder == {}
    assert "x.h5 contains no text_hash: its documents are split by their ids" in found.remarks[0]
    with h5py.File(tmp_path / "x.h5", "a") as file:
        del file["train/document_id"]
    with pytest.raises(TrainingError, match="contains no document_id"):
        find_labelled_rows([tmp_path / "x.h5"], "train", None, None, None)
