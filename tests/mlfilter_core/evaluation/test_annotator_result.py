from pathlib import Path

import numpy as np
import pytest

from mlfilter_core.evaluation.agreement import MeasureOptions
from mlfilter_core.evaluation.annotator_result import annotator_result
from mlfilter_core.evaluation.predictions import Predictions
from mlfilter_core.evaluation.scale import Scale
from mlfilter_core.evaluation.truth import Truth

TRUTH = Truth(
    [Path("gt.jsonl")],
    scores={"a": 0.0, "b": 1.0, "c": 2.0, "d": 2.0, "e": 1.0, "f": 0.0},
    invalid={"x"},
    languages={"a": "de", "f": "fr"},
)
SCALE = Scale((0.0, 1.0, 2.0))


def predictions(language: str = "de", **scores: float | None) -> Predictions:
    part = Predictions("m", language, Path(f"{language}/annotations_m.jsonl"))
    for document_id, score in scores.items():
        part.add(document_id, score, TRUTH)
    return part


def test_every_document_of_both_sides_is_accounted_for() -> None:
    part = predictions(a=0.0, b=2.0, c=None, x=1.0, unknown=1.0)
    part.add("b", 2.5, TRUTH)
    result = annotator_result([part], TRUTH, MeasureOptions(SCALE, (1.0,)))
    assert result.counts == {
        "documents": 6,
        "matched": 4,
        "valid": 2,
        "invalid": 1,
        "invalid_truth": 1,
        "predicted_without_truth": 1,
        "truth_without_prediction": 2,  # d and e; f is French
        "duplicates": 1,
        "invalid_draws": 0,
        "beyond_scale": 1,
    }
    counts = result.counts
    assert counts["documents"] == counts["matched"] + counts["predicted_without_truth"] + counts["duplicates"]
    assert result.left_out.examples == {
        "predicted_without_truth": ["unknown"],
        "invalid": ["c"],
        "invalid_truth": ["x"],
        "truth_without_prediction": ["d", "e"],
    }
    assert result.agreement.values["Acc"] == 1 / 2
    assert result.exclusions()[0].startswith("left out: 1 predicted_without_truth (unknown); 1 invalid (c)")


def test_the_confusion_matrix_has_invalid_scores_first_as_in_ml_filter() -> None:
    result = annotator_result(
        [predictions(a=0.0, b=1.4, c=None, d=0.4, e=5.0)], TRUTH, MeasureOptions(SCALE, n_resamples=0)
    )
    assert result.confusion.tolist() == [[0, 1, 0, 0], [0, 0, 1, 1], [1, 1, 0, 0]]
    facts = result.to_json()
    assert facts["CM"] == {
        "0": {"-1": 0, "0": 1, "1": 0, "2": 0},
        "1": {"-1": 0, "0": 0, "1": 1, "2": 1},
        "2": {"-1": 1, "0": 1, "1": 0, "2": 0},
    }
    assert facts["metrics"]["Invalid"] == 1
    assert facts["intervals"] == {}


def test_where_minus_one_is_a_label_invalid_scores_have_another_name() -> None:
    scale = Scale((-1.0, 0.0, 1.0, 2.0))
    result = annotator_result([predictions(a=None, b=-0.6)], TRUTH, MeasureOptions(scale, n_resamples=0))
    assert result.to_json()["CM"]["0"] == {"invalid": 1, "-1": 0, "0": 0, "1": 0, "2": 0}
    assert result.to_json()["CM"]["1"] == {"invalid": 0, "-1": 1, "0": 0, "1": 0, "2": 0}


def test_several_languages_together_hold_each_document_of_each() -> None:
    german, french = predictions("de", a=0.0, b=1.0, c=1.0), predictions("fr", a=2.0, b=1.0, f=None, unknown=1.0)
    together = annotator_result([german, french], TRUTH, MeasureOptions(SCALE))
    assert (together.language, together.annotator) == (None, "m")
    assert together.truth.tolist() == [0.0, 1.0, 2.0, 0.0, 1.0]
    assert together.predicted.tolist() == [0.0, 1.0, 1.0, 2.0, 1.0]
    assert together.agreement.values["MAE"] == (1 + 2) / 5
    assert (together.counts["documents"], together.counts["matched"], together.counts["invalid"]) == (7, 6, 1)
    assert together.left_out.examples["truth_without_prediction"] == ["d", "e", "x"]


def test_intervals_are_of_the_defined_measures_and_the_seed_decides() -> None:
    part = predictions(a=0.0, b=1.0, c=0.5, d=2.0, e=1.0)
    result = annotator_result([part], TRUTH, MeasureOptions(SCALE, (9.0,), 300))
    defined = {name for name, value in result.agreement.values.items() if value is not None}
    assert result.intervals.keys() == defined
    assert "Binary-Recall-9.0" not in defined
    again = annotator_result([part], TRUTH, MeasureOptions(SCALE, (9.0,), 300))
    other = annotator_result([part], TRUTH, MeasureOptions(SCALE, (9.0,), 300, seed=1))
    assert again.intervals == result.intervals != other.intervals
    mae = result.intervals["MAE"]
    assert mae.low is not None and mae.high is not None
    assert mae.low < result.agreement.values["MAE"] < mae.high  # type: ignore[operator]


@pytest.mark.parametrize("scores", [{}, {"a": None}, {"a": 1.0}])
def test_one_document_or_none_has_no_intervals(scores: dict[str, float | None]) -> None:
    result = annotator_result([predictions(**scores)], TRUTH, MeasureOptions(SCALE))
    assert result.intervals == {}
    assert result.confusion.sum() == len(scores)
    if result.truth.size == 0:
        assert result.gaps()[-1] == ("all measures are undefined: no document has a valid score on both sides")


def test_remarks_say_what_is_undefined_and_why() -> None:
    result = annotator_result([predictions(b=1.0, e=1.0)], TRUTH, MeasureOptions(SCALE, (), 10))
    (remark,) = (remark for remark in result.gaps() if remark.startswith("undefined: "))
    assert remark.startswith("undefined: Spearman, Kendall, Pearson: all true scores are 1; Krippendorff, Fleiss, ")
    assert "; CA-2: no document has the true label 2; " in remark


def test_the_correlation_of_scores_that_agree_is_one() -> None:
    result = annotator_result([predictions(a=0.0, b=1.0, c=2.0, d=2.0, e=1.0)], TRUTH, MeasureOptions(SCALE, (), 500))
    assert result.agreement.values["Spearman"] == pytest.approx(1)
    assert np.allclose([result.intervals["Spearman"].low, result.intervals["Spearman"].high], 1)
    assert any(remark.startswith("undefined in some resamples, which the") for remark in result.gaps())
