import numpy as np
import pytest
from scipy.stats import binom

from mlfilter_core.evaluation.agreement import MeasureOptions, Pairs
from mlfilter_core.evaluation.resampling import bootstrap
from mlfilter_core.evaluation.scale import Scale

THRESHOLDS = (2.0, 2.5)
MODULE = "mlfilter_core.evaluation.resampling"


def random_scores(rng: np.random.Generator, kind: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels, scores of a head, scores that are the truth, or means of three draws; some have one label alone."""
    n = rng.integers(1, 30)
    truth = rng.integers(0, rng.integers(1, 7), n).astype(float)
    predicted = (
        rng.integers(0, 6, n).astype(float),
        truth + 2 * rng.normal(size=n),
        truth.copy(),
        rng.integers(0, 16, n) / 3,
    )[kind]
    return truth, predicted


def test_the_interval_of_accuracy_is_that_of_the_binomial_distribution(scale: Scale) -> None:
    truth = np.ones(100)
    predicted = np.repeat([1.0, 2.0], [70, 30])
    interval = bootstrap(Pairs(truth, predicted), np.arange(100), MeasureOptions(scale, (), 20_000))["Acc"]
    expected = binom.ppf([0.025, 0.975], 100, 0.7) / 100  # 0.61 and 0.79
    assert (interval.low, interval.high) == pytest.approx(tuple(expected), abs=0.0101)
    assert interval.undefined == 0


def test_a_document_of_several_languages_is_drawn_as_one(scale: Scale) -> None:
    rng = np.random.default_rng(1)
    truth, noise = rng.integers(0, 6, 80).astype(float), rng.integers(-1, 2, 80)
    once = bootstrap(Pairs(truth, truth + noise), np.arange(80), MeasureOptions(scale, (), 200, seed=3))
    documents = np.tile(np.arange(80), 3)
    thrice = bootstrap(
        Pairs(truth[documents], (truth + noise)[documents]), documents, MeasureOptions(scale, (), 200, seed=3)
    )
    for name in ("Acc", "MAE", "Spearman", "Kendall", "Cohen-Quadratic", "Macro-F1"):
        assert (thrice[name].low, thrice[name].high) == pytest.approx((once[name].low, once[name].high), rel=1e-9), name
    alone = bootstrap(
        Pairs(truth[documents], (truth + noise)[documents]), np.arange(240), MeasureOptions(scale, (), 200, seed=3)
    )
    width = {name: group["MAE"].high - group["MAE"].low for name, group in (("once", once), ("alone", alone))}  # type: ignore[operator]
    assert width["alone"] < 0.8 * width["once"]  # as if there were three times as many documents


def test_the_seed_decides_and_the_size_of_blocks_does_not(monkeypatch: pytest.MonkeyPatch, scale: Scale) -> None:
    pairs = Pairs(*random_scores(np.random.default_rng(5), 3))
    documents = np.arange(len(pairs.place))
    first = bootstrap(pairs, documents, MeasureOptions(scale, THRESHOLDS, 50, seed=1))
    assert bootstrap(pairs, documents, MeasureOptions(scale, THRESHOLDS, 50, seed=2)) != first
    monkeypatch.setattr(f"{MODULE}.BLOCK_ELEMENTS", 3 * len(documents))
    assert bootstrap(pairs, documents, MeasureOptions(scale, THRESHOLDS, 50, seed=1)) == first


def test_resamples_in_which_a_measure_is_undefined_are_left_out_and_counted(scale: Scale) -> None:
    truth = np.array([0.0, 1.0, 1.0])
    found = bootstrap(Pairs(truth, truth), np.arange(3), MeasureOptions(scale, (3.0,), 2000))
    # All true scores are one in (1/3)^3 + (2/3)^3 = 1/3 of the resamples.
    assert found["Spearman"].undefined == pytest.approx(2000 / 3, abs=80)
    assert (found["Spearman"].low, found["Spearman"].high) == pytest.approx((1, 1))
    assert (found["Binary-F1-3.0"].low, found["Binary-F1-3.0"].undefined) == (None, 2000)
    assert found["MAE"].undefined == 0
