"""Each measure against numbers that were worked out by hand.

TRUTH and PREDICTED of six documents give this confusion matrix, true labels downwards:

        0  1  2 | r
    0   1  1  0 | 2
    1   0  1  1 | 2
    2   0  0  2 | 2
    c   1  2  3 | 6
"""

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from mlfilter_core.evaluation.agreement import MAX_DISTINCT, agreement
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


def test_every_measure_is_the_one_worked_out_by_hand() -> None:
    found = agreement(TRUTH, PREDICTED, THREE, [1.0, 2.0])
    assert found.values == pytest.approx(BY_HAND, rel=1e-12)
    assert found.undefined == {}


def test_classes_of_other_sizes_weigh_as_much_as_they_have_documents() -> None:
    # Hits 2 and 1 of (r, c) = (3, 2) and (1, 2): F1 4/5 and 2/3.
    found = agreement(np.array([0.0, 0, 0, 1]), np.array([0.0, 0, 1, 1]), THREE, []).values
    assert found["Weighted-F1"] == pytest.approx((3 * 4 / 5 + 2 / 3) / 4)
    assert found["Macro-F1"] == pytest.approx((4 / 5 + 2 / 3) / 2)  # of the classes that there are


def test_krippendorff_s_alpha_is_that_of_his_own_example() -> None:
    # Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011), section A: two observers, binary data. All
    # metrics are the same for two values: 1 - 19 * 4 / (14 * 6).
    meg = np.array([0.0, 1, 0, 0, 0, 0, 0, 0, 1, 0])
    owen = np.array([1.0, 1, 1, 0, 0, 1, 0, 0, 0, 0])
    alpha = agreement(meg, owen, Scale((0.0, 1.0)), []).values["Krippendorff"]
    assert alpha == pytest.approx(0.095, abs=5e-4)
    assert alpha == pytest.approx(1 - 19 * 4 / (14 * 6), rel=1e-12)


def test_cohen_s_kappa_is_that_of_a_textbook() -> None:
    # Two readers of 50 grant proposals: both yes 20, both no 15, 5 and 10 apart; kappa 0.40 (the example of Wikipedia).
    one = np.repeat([1.0, 1, 0, 0], [20, 5, 10, 15])
    two = np.repeat([1.0, 0, 1, 0], [20, 5, 10, 15])
    assert agreement(one, two, Scale((0.0, 1.0)), []).values["Cohen"] == pytest.approx(0.4, rel=1e-12)


def test_scores_between_labels_are_rounded_for_classes_and_taken_as_they_are_otherwise() -> None:
    found = agreement(np.array([2.0, 1.0, 0.0]), np.array([1.5, 2.25, -1.0]), THREE, [2.0]).values
    assert found["Acc"] == pytest.approx(2 / 3)  # labels 2, 2, 0
    assert found["MAE"] == pytest.approx((0.5 + 1.25 + 1) / 3)
    assert found["MSE"] == pytest.approx((0.25 + 1.5625 + 1) / 3)
    assert found["Spearman"] == pytest.approx(1 / 2)  # 1 - 6 * (1 + 1 + 0) / (3 * 8)
    assert found["TA-2.0"] == pytest.approx(1 / 3)  # 1.5 does not reach 2, 2.25 does


def test_alpha_of_many_distinct_scores_is_that_of_the_library(scale: Scale) -> None:
    import krippendorff

    rng = np.random.default_rng(0)
    truth = rng.integers(0, 6, 60).astype(float)
    predicted = truth + rng.normal(size=60)
    assert len(np.unique([truth, predicted])) > MAX_DISTINCT
    expected = krippendorff.alpha(np.stack([truth, predicted]), level_of_measurement="ordinal")
    assert agreement(truth, predicted, scale, []).values["Krippendorff"] == pytest.approx(expected, rel=1e-9)


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
    found = agreement(np.array(truth, float), np.array(predicted, float), THREE, [1.0, 2.0])
    assert found.undefined == undefined
    assert {name for name, value in found.values.items() if value is None} == found.undefined.keys()
    assert all(value is None or math.isfinite(value) for value in found.values.values())
    assert found.values.keys() == BY_HAND.keys()


def test_scores_that_are_nearly_constant_give_no_warning() -> None:
    nearly: NDArray[np.float64] = np.array([1.0, np.nextafter(1.0, 2), 1.0])
    found = agreement(TRUTH[1:4], nearly, THREE, [])
    assert found.values["Spearman"] == pytest.approx(1 / 2)
