from typing import Any

import numpy as np
import pytest

from mlfilter_core.config.training import HeadRecipe
from mlfilter_core.corpus.documents import hash_text
from mlfilter_core.errors import TrainingError
from mlfilter_core.training.divided_documents import divide_documents
from mlfilter_core.training.splits import is_held_out
from mlfilter_core.training.train_request import TrainRequest
from tests.mlfilter_core.training.conftest import WriteLabelled


def test_equal_texts_are_held_out_together(write_labelled: WriteLabelled) -> None:
    """Twenty texts, ten documents each: the held-out documents are all documents of some texts."""
    path = write_labelled(texts=[f"text {i % 20}" for i in range(200)])
    documents = divide_documents(TrainRequest("quality", HeadRecipe(), [path]))
    n_held_out = int(documents.held_out.sum())
    assert n_held_out % 10 == 0
    assert 0 < n_held_out < 200


@pytest.mark.parametrize(
    ("n", "recipe", "other", "message"),
    [
        (
            3,
            {},
            {"test_fraction": 1e-9},
            r"of 3 documents with labels, 0 are held out; label more, or change test_frac",
        ),
        (12, {"folds": 100}, {}, r"\d+ documents with \d+ different texts are too few for 100 folds; label more, or"),
        (2, {"folds": 1}, {"test_fraction": 0.5}, "1 documents with 1 different texts are too few for 1 folds"),
    ],
)
def test_too_few_documents_are_refused(
    write_labelled: WriteLabelled, n: int, recipe: dict[str, Any], other: dict[str, Any], message: str
) -> None:
    with pytest.raises(TrainingError, match=message):
        divide_documents(TrainRequest("quality", HeadRecipe(**recipe), [write_labelled(n=n)], **other))


def test_equal_labels_of_all_documents_to_train_on_are_refused(write_labelled: WriteLabelled) -> None:
    """The only document with another label may be held out."""
    hashes = np.array([hash_text(f"x.h5 {i}") for i in range(200)], np.uint64)
    held_out = is_held_out(hashes, 0.2, 0)
    labels = np.ones(200)
    labels[np.flatnonzero(held_out)[0]] = 2
    n = int((~held_out).sum())
    with pytest.raises(TrainingError, match=f"all {n} labels that are not held out are 1; label more documents, or"):
        divide_documents(TrainRequest("quality", HeadRecipe(), [write_labelled("x.h5", labels=labels)]))
