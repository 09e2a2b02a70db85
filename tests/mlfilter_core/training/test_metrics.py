import numpy as np
import pytest

from mlfilter_core.training.head_task import HeadTask
from mlfilter_core.training.metrics import head_metrics
from tests.mlfilter_core.training.conftest import column


def test_metrics_of_a_regression() -> None:
    """By hand: errors 1, 0, -1, 0; ranks 1 2 3 4 and 2 1 3 4, whose squared differences add up to 2."""
    metrics = head_metrics(HeadTask("regression", 1, ()), column(2, 1, 2, 4), column(1, 1, 3, 4))
    assert metrics["mae"] == 0.5
    assert metrics["mse"] == 0.5
    assert metrics["r2"] == pytest.approx(1 - 2 / 6.75)  # the labels' squared distances from 2.25 add up to 6.75
    metrics = head_metrics(HeadTask("regression", 1, ()), column(2, 1, 3, 4), column(1, 2, 3, 4))
    assert metrics["spearman"] == pytest.approx(1 - 6 * 2 / (4 * 15))
    assert metrics["pearson"] == pytest.approx(0.8)


def test_undefined_metrics_are_none() -> None:
    metrics = head_metrics(HeadTask("regression", 1, ()), column(1, 1), column(1, 2))
    assert (metrics["spearman"], metrics["pearson"], metrics["mse"]) == (None, None, 0.5)
    assert head_metrics(HeadTask("regression", 1, ()), column(1, 2), column(2, 2))["r2"] is None
    assert head_metrics(HeadTask("binary", 1, ("0", "1")), column(1, -1), column(1, 1))["roc_auc"] is None


def test_metrics_of_several_targets_have_their_names() -> None:
    outputs, labels = np.array([[1, 5], [2, 6]], np.float32), np.array([[1, 4], [2, 8]], np.float32)
    metrics = head_metrics(HeadTask("regression", 2, ("a", "b")), outputs, labels)
    assert (metrics["a.mae"], metrics["b.mae"]) == (0, 1.5)


def test_metrics_of_classifiers() -> None:
    """By hand: of four documents, the third is taken for the other class; its pair is the one in four out of order."""
    metrics = head_metrics(HeadTask("binary", 1, ("0", "1")), column(-2, -1, 1, 2), column(0, 1, 0, 1))
    assert metrics["accuracy"] == 0.5
    assert metrics["roc_auc"] == 0.75
    probabilities = 1 / (1 + np.exp([2, 1, -1, -2]))
    expected = -np.log([1 - probabilities[0], probabilities[1], 1 - probabilities[2], probabilities[3]]).mean()
    assert metrics["log_loss"] == pytest.approx(expected, abs=1e-5)
    logits = np.array([[5, 0, 0], [0, 5, 0], [0, 5, 0], [0, 0, 5]], np.float32)
    metrics = head_metrics(HeadTask("multiclass", 3, ("a", "b", "c")), logits, column(0, 1, 2, 2))
    assert metrics["accuracy"] == 0.75
    assert metrics["macro_f1"] == pytest.approx((1 + 2 / 3 + 2 / 3) / 3, abs=1e-5)


def test_metrics_of_several_labels() -> None:
    """By hand: the first label is right for three of four documents, the second for all."""
    outputs = np.array([[2, -1], [1, 1], [-1, 3], [1, -2]], np.float32)
    labels = np.array([[1, 0], [1, 1], [0, 1], [0, 0]], np.float32)
    metrics = head_metrics(HeadTask("multilabel", 2, ("a", "b")), outputs, labels)
    assert (metrics["a.accuracy"], metrics["b.accuracy"], metrics["accuracy"]) == (0.75, 1, 0.875)
    assert (metrics["a.f1"], metrics["b.f1"]) == (0.8, 1)
    assert metrics["macro_f1"] == 0.9
    assert (metrics["a.roc_auc"], metrics["b.roc_auc"], metrics["roc_auc"]) == (0.875, 1, 0.9375)
    assert metrics["exact_match"] == 0.75


def test_a_label_that_no_document_has_leaves_the_means_defined() -> None:
    outputs, labels = np.array([[1, -1], [-1, -1]], np.float32), np.array([[1, 0], [0, 0]], np.float32)
    metrics = head_metrics(HeadTask("multilabel", 2, ("a", "b")), outputs, labels)
    assert (metrics["b.roc_auc"], metrics["roc_auc"]) == (None, 1)
