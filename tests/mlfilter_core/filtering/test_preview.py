import math

import pytest

from mlfilter_core.config.filtering import Bound, Selection
from mlfilter_core.errors import ConfigError
from mlfilter_core.filtering.preview import bounds_of, preview
from mlfilter_core.filtering.survey import Survey
from tests.mlfilter_core.filtering.conftest import survey_of


def test_other_bounds_are_shown_beside_those_of_the_job() -> None:
    surveys = [survey_of({"q": [1, 2, 3, 4], "r": [4, 3, 2, 1]}, tokens=[10, 20, 30, 40])]
    selection = Selection(scores={"q": Bound(threshold=2), "r": Bound(threshold=2)})
    rows = [row.cells() for row in preview(selection, bounds_of([50], [4]), lambda: surveys)]
    assert rows == [
        ["q, r", "threshold 2, threshold 2, 2 of 2", "2", "50.0 %", "50", "50.0 %"],
        ["q", "percentile 50", "2", "50.0 %", "70", "70.0 %"],
        ["q", "threshold 4", "1", "25.0 %", "40", "40.0 %"],
        ["r", "percentile 50", "2", "50.0 %", "30", "30.0 %"],
        ["r", "threshold 4", "1", "25.0 %", "10", "10.0 %"],
    ]


def test_the_bound_of_the_job_is_shown_once_and_unknown_tokens_are_not_shown() -> None:
    surveys = [survey_of([1, 2, 3, 4], tokens=[-1] * 4)]
    selection = Selection.model_validate({"scores": "q"})
    rows = [row.cells() for row in preview(selection, bounds_of([70, 75], []), lambda: surveys)]
    assert rows == [
        ["q", "percentile 70", "2", "50.0 %", "-", "-"],
        ["q", "percentile 75", "1", "25.0 %", "-", "-"],
    ]


def test_many_bounds_take_no_more_passes_than_one() -> None:
    passes = []

    def surveys() -> list[Survey]:
        passes.append(1)
        return [survey_of([1, 2, 3, 4], tokens=[5] * 4), survey_of([5, 6], tokens=[5] * 2, stem="y")]

    selection = Selection(scores={"q": Bound(best_tokens=12)})
    rows = [row.cells()[1:3] for row in preview(selection, bounds_of([0, 10, 50, 90], [2, 6]), surveys)]
    assert rows == [
        *(["best 12 tokens", "2"], ["percentile 0", "6"], ["percentile 10", "6"], ["percentile 50", "3"]),
        *(["percentile 90", "1"], ["threshold 2", "5"], ["threshold 6", "1"]),
    ]
    assert len(passes) == 5  # four find 64 bits, one counts the kept


@pytest.mark.parametrize(
    ("percentiles", "thresholds", "message"),
    [
        ([100], [], "--percentiles: 100 is not a percentile; give numbers from 0 to below 100"),
        ([], [math.inf], "--thresholds: give f"),
    ],
)
def test_invalid_percentiles_and_thresholds_are_refused(
    percentiles: list[float], thresholds: list[float], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        bounds_of(percentiles, thresholds)
