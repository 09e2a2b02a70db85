"""Each measure against numbers worked out by hand, and against scikit-learn, scipy and krippendorff.

TRUTH and PREDICTED of six documents give this confusion matrix, true labels downwards:

        0  1  2 | r
    0   1  1  0 | 2
    1   0  1  1 | 2
    2   0  0  2 | 2
    c   1  2  3 | 6
"""

import math
from collections.abc import Sequence
from typing import Any

import krippendorff
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from sklearn import metrics

from mlfilter_core.evaluation.agreement import Agreement, MeasureOptions, Pairs, agreement, weighted_measures
from mlfilter_core.evaluation.scale import Scale

TRUTH = np.array([0.0, 0, 1, 1, 2, 2])
PREDICTED = np.array([0.0, 1, 1, 2, 2, 2])
THREE = Scale((0.0, 1.0, 2.0))

BY_HAND = {
    "Acc": 4 / 6,
    "MAE": 2 / 6,
    "MSE": 2 / 6,
    "CA-0": 1 / 2,
    "CA-1": 1 / 2,
    "CA-2": 1,
    # 2 hits / (r + c)
    "F1-0": 2 / 3,
    "F1-1": 2 / 4,
    "F1-2": 4 / 5,
    "Macro-F1": 59 / 90,
    "Micro-F1": 4 / 6,
    "Weighted-F1": 59 / 90,
    # Agreement by chance is sum(r c) / 36 = (2 + 4 + 6) / 36 = 1/3: (2/3 - 1/3) / (1 - 1/3).
    "Cohen": 1 / 2,
    # Squared distances are 1 + 1 = 2; by chance sum(r c d^2) / 6 = (2 (2 + 12) + 2 (1 + 3) + 2 (4 + 2)) / 6 = 8.
    "Cohen-Quadratic": 1 - 2 / 8,
    # Shares of both raters' labels are 3/12, 4/12, 5/12, by chance 50/144: (96/144 - 50/144) / (94/144).
    "Fleiss": 46 / 94,
    # Less its mean, truth is -1 -1 0 0 1 1; with predicted that gives 3. Squares: 4, and 14 - 8^2 / 6 = 10/3.
    "Pearson": 3 / math.sqrt(4 * 10 / 3),
    # Ranks less their mean: -2 -2 0 0 2 2 and -2.5 -1 -1 1.5 1.5 1.5.
    "Spearman": 13 / math.sqrt(16 * 15),
    # 9 pairs concordant, none discordant, of 15, of which 3 are tied in truth, 1 + 3 in predicted.
    "Kendall": 9 / math.sqrt((15 - 3) * (15 - 4)),
    # Of 3 zeros, 4 ones, 5 twos the middle ranks less their mean are -4.5, -1, 3.5. Observed: (3.5^2 + 4.5^2) / 6.
    # Expected: 2 / 11 (3 * 4.5^2 + 4 * 1^2 + 5 * 3.5^2) = 2 / 11 * 126.
    "Krippendorff": 1 - (32.5 / 6) / (252 / 11),
    # At 1: true 4, predicted 5, both 4. At 2: true 2, predicted 3, both 2.
    "TA-1.0": 5 / 6,
    "Binary-Precision-1.0": 4 / 5,
    "Binary-Recall-1.0": 1,
    "Binary-F1-1.0": 8 / 9,
    "TA-2.0": 5 / 6,
    "Binary-Precision-2.0": 2 / 3,
    "Binary-Recall-2.0": 1,
    "Binary-F1-2.0": 4 / 5,
}


def measured(truth: ArrayLike, predicted: ArrayLike, scale: Scale, thresholds: Sequence[float] = ()) -> Agreement:
    pairs = Pairs(np.asarray(truth, np.float64), np.asarray(predicted, np.float64))
    return agreement(pairs, MeasureOptions(scale, tuple(thresholds)))


def test_every_measure_is_the_one_worked_out_by_hand() -> None:
    found = measured(TRUTH, PREDICTED, THREE, [1.0, 2.0])
    assert found.values == pytest.approx(BY_HAND, rel=1e-12)
    assert found.undefined == {}


def test_classes_of_other_sizes_weigh_as_much_as_they_have_documents() -> None:
    # Hits 2 and 1 of (r, c) = (3, 2) and (1, 2): F1 4/5 and 2/3.
    found = measured([0, 0, 0, 1], [0, 0, 1, 1], THREE).values
    assert found["Weighted-F1"] == pytest.approx((3 * 4 / 5 + 2 / 3) / 4)
    assert found["Macro-F1"] == pytest.approx((4 / 5 + 2 / 3) / 2)  # over the classes that occur


def test_krippendorff_s_alpha_is_that_of_his_own_example() -> None:
    # Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011), section A: two observers, binary data. All
    # metrics are the same for two values: 1 - 19 * 4 / (14 * 6).
    meg = np.array([0.0, 1, 0, 0, 0, 0, 0, 0, 1, 0])
    owen = np.array([1.0, 1, 1, 0, 0, 1, 0, 0, 0, 0])
    alpha = measured(meg, owen, Scale((0.0, 1.0))).values["Krippendorff"]
    assert alpha == pytest.approx(0.095, abs=5e-4)
    assert alpha == pytest.approx(1 - 19 * 4 / (14 * 6), rel=1e-12)


def test_cohen_s_kappa_is_that_of_a_textbook() -> None:
    # Two readers of 50 grant proposals: both yes 20, both no 15, 5 and 10 apart; kappa 0.40 (the example of Wikipedia).
    one = np.repeat([1.0, 1, 0, 0], [20, 5, 10, 15])
    two = np.repeat([1.0, 0, 1, 0], [20, 5, 10, 15])
    assert measured(one, two, Scale((0.0, 1.0))).values["Cohen"] == pytest.approx(0.4, rel=1e-12)


def test_scores_between_labels_are_rounded_for_classes_and_taken_as_they_are_otherwise() -> None:
    found = measured([2.0, 1.0, 0.0], [1.5, 2.25, -1.0], THREE, [2.0]).values
    assert found["Acc"] == pytest.approx(2 / 3)  # labels 2, 2, 0
    assert found["MAE"] == pytest.approx((0.5 + 1.25 + 1) / 3)
    assert found["MSE"] == pytest.approx((0.25 + 1.5625 + 1) / 3)
    assert found["Spearman"] == pytest.approx(1 / 2)  # 1 - 6 * (1 + 1 + 0) / (3 * 8)
    assert found["TA-2.0"] == pytest.approx(1 / 3)  # 1.5 does not reach 2, 2.25 does


def by_the_libraries(
    truth: NDArray[np.float64], predicted: NDArray[np.float64], scale: Scale, thresholds: Sequence[float]
) -> dict[str, float]:
    """Returns each measure as the libraries compute it; NaN where it is undefined."""
    true, guessed, both = scale.nearest(truth), scale.nearest(predicted), np.concatenate([truth, predicted])
    labels: Any = np.arange(len(scale.labels))
    has_spread = np.ptp(truth) > 0 and np.ptp(predicted) > 0
    has_labels = len({*true, *guessed}) > 1
    shares = np.bincount([*true, *guessed]) / (2 * len(true))
    chance = np.sum(shares**2)
    found = {
        "Spearman": stats.spearmanr(truth, predicted).statistic if has_spread else math.nan,
        "Kendall": stats.kendalltau(truth, predicted).statistic if has_spread else math.nan,
        "Pearson": stats.pearsonr(truth, predicted).statistic if has_spread else math.nan,
        "Krippendorff": krippendorff.alpha(np.stack([truth, predicted]), level_of_measurement="ordinal")
        if np.ptp(both) > 0
        else math.nan,
        "Fleiss": (np.mean(true == guessed) - chance) / (1 - chance) if has_labels else math.nan,
        "Cohen": metrics.cohen_kappa_score(true, guessed, labels=labels) if has_labels else math.nan,
        "Cohen-Quadratic": metrics.cohen_kappa_score(true, guessed, labels=labels, weights="quadratic")
        if has_labels
        else math.nan,
        "Acc": metrics.accuracy_score(true, guessed),
        "MAE": metrics.mean_absolute_error(truth, predicted),
        "MSE": metrics.mean_squared_error(truth, predicted),
    }
    for average in ("macro", "micro", "weighted"):
        found[f"{average.title()}-F1"] = metrics.f1_score(true, guessed, average=average, zero_division=0)
    _, recall, f1, _ = metrics.precision_recall_fscore_support(true, guessed, labels=labels, zero_division=np.nan)
    for place, label in enumerate(scale.names):
        found |= {f"CA-{label}": recall[place], f"F1-{label}": f1[place]}
    for threshold in thresholds:
        reached = truth >= threshold, predicted >= threshold
        binary = metrics.precision_recall_fscore_support(*reached, average="binary", zero_division=np.nan)
        found[f"TA-{threshold}"] = metrics.accuracy_score(*reached)
        found |= zip((f"Binary-{name}-{threshold}" for name in ("Precision", "Recall", "F1")), binary[:3], strict=True)
    return found


LABELS = st.integers(0, 5).map(float)
SCORES = st.one_of(
    LABELS,
    st.integers(0, 15).map(lambda thirds: thirds / 3),  # means of draws: many ties
    st.integers(-(10**6), 10**6).map(lambda millionths: 2 + millionths / 10**6),  # scores of a head
    st.integers(-(10**6), 10**6).map(lambda millions: millions * 1e6),  # far beyond the scale
)


@st.composite
def paired_scores(draw: st.DrawFn) -> tuple[list[float], list[float]]:
    """Labels and labels, labels and scores, or scores and scores of the same documents; often all equal on one side."""
    n = draw(st.integers(1, 20))
    sides = []
    for values in (draw(st.sampled_from([LABELS, SCORES])) for _ in range(2)):
        constant = st.lists(values, min_size=1, max_size=1).map(lambda one: one * n)
        sides.append(draw(st.one_of(st.lists(values, min_size=n, max_size=n), constant)))
    return sides[0], sides[1]


@settings(max_examples=40, deadline=None)  # each makes 30 library calls
@given(paired_scores(), st.sampled_from([0, 2000]), st.data())
def test_measures_of_weighted_pairs_are_those_of_the_libraries_for_repeated_documents(
    scores: tuple[list[float], list[float]], max_signed_pairs: int, data: st.DataObject
) -> None:
    scale, thresholds = Scale((0.0, 1.0, 2.0, 3.0, 4.0, 5.0)), (2.0, 2.5)
    truth, predicted = (np.array(side) for side in scores)
    pairs = Pairs(truth, predicted)
    repeats = st.lists(st.integers(0, 3), min_size=len(pairs), max_size=len(pairs)).filter(any)
    weights = np.array([pairs.counts, data.draw(repeats)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mlfilter_core.evaluation.agreement.MAX_SIGNED_PAIRS", max_signed_pairs)
        found = weighted_measures(pairs, weights, MeasureOptions(scale, thresholds))
    for i, counts in enumerate(weights.astype(int)):
        repeated = np.repeat(pairs.truth, counts), np.repeat(pairs.predicted, counts)
        expected = by_the_libraries(*repeated, scale, thresholds)
        assert {name: value[i] for name, value in found.items()} == pytest.approx(
            expected, rel=1e-9, abs=1e-9, nan_ok=True
        )
    of_documents = agreement(pairs, MeasureOptions(scale, thresholds))
    values = {name: math.nan if value is None else value for name, value in of_documents.values.items()}
    assert values == pytest.approx({name: value[0] for name, value in found.items()}, rel=1e-9, nan_ok=True)
    assert of_documents.undefined.keys() == {name for name, value in found.items() if math.isnan(value[0])}


def test_alpha_of_many_distinct_scores_is_that_of_the_library(scale: Scale) -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 6, 60).astype(float)
    predicted = truth + rng.normal(size=60)
    expected = krippendorff.alpha(np.stack([truth, predicted]), level_of_measurement="ordinal")
    assert measured(truth, predicted, scale).values["Krippendorff"] == pytest.approx(expected, rel=1e-9)


def test_alpha_takes_no_matrix_of_all_distinct_scores(scale: Scale) -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(size=50_000)  # a matrix would take 20 GB
    assert measured(scores, scores, scale).values["Krippendorff"] == 1


CONSTANT = "all true scores are 1"


@pytest.mark.parametrize(
    ("truth", "predicted", "undefined"),
    [
        ([], [], dict.fromkeys(BY_HAND, "no document has a valid score on both sides")),
        (
            [1, 1],
            [1, 1],
            {
                **dict.fromkeys(("Spearman", "Kendall", "Pearson"), CONSTANT),
                **dict.fromkeys(
                    ("Krippendorff", "Fleiss", "Cohen", "Cohen-Quadratic"), "all true and predicted scores are 1"
                ),
                **{f"CA-{label}": f"no document has the true label {label}" for label in (0, 2)},
                **{f"F1-{label}": f"no document has the label {label} on either side" for label in (0, 2)},
                "Binary-Precision-2.0": "no predicted score reaches 2",
                "Binary-Recall-2.0": "no true score reaches 2",
                "Binary-F1-2.0": "no score reaches 2",
            },
        ),
        (
            [0, 2],
            [1, 1],
            {
                **dict.fromkeys(("Spearman", "Kendall", "Pearson"), "all predicted scores are 1"),
                "CA-1": "no document has the true label 1",
                "Binary-Precision-2.0": "no predicted score reaches 2",
            },
        ),
        (
            [1],
            [2],
            {
                **dict.fromkeys(("Spearman", "Kendall", "Pearson"), CONSTANT),
                **{f"CA-{label}": f"no document has the true label {label}" for label in (0, 2)},
                "F1-0": "no document has the label 0 on either side",
                "Binary-Recall-2.0": "no true score reaches 2",
            },
        ),
        (
            [0, 1],
            [0.0, 2.0],
            {"CA-2": "no document has the true label 2", "Binary-Recall-2.0": "no true score reaches 2"},
        ),
    ],
)
def test_what_is_undefined_is_none_with_a_reason(
    truth: list[float], predicted: list[float], undefined: dict[str, str]
) -> None:
    found = measured(truth, predicted, THREE, [1.0, 2.0])
    assert found.undefined == undefined
    assert {name for name, value in found.values.items() if value is None} == found.undefined.keys()
    assert all(value is None or math.isfinite(value) for value in found.values.values())
    assert found.values.keys() == BY_HAND.keys()


def test_scores_that_are_nearly_constant_give_no_warning() -> None:
    nearly: NDArray[np.float64] = np.array([1.0, np.nextafter(1.0, 2), 1.0])
    found = measured(TRUTH[1:4], nearly, THREE)
    assert found.values["Spearman"] == pytest.approx(1 / 2)


def test_differences_whose_squares_underflow_have_a_correlation() -> None:
    assert measured([0, 1, 1], [0, 1e-200, 0], THREE).values["Pearson"] == pytest.approx(1 / 2)
