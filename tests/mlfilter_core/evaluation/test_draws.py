import math

import pytest

from mlfilter_core.errors import ConfigError
from mlfilter_core.evaluation.draws import MISSING, Aggregation, Scoring, aggregate, keep_last, parse_aggregation
from mlfilter_core.evaluation.scale import Scale
from mlfilter_core.tallies.tally import Tally


@pytest.mark.parametrize(
    ("how", "draws", "score"),
    [
        ("mean", [1, 2, 2], 5 / 3),
        ("max", [1, 2, 2], 2),
        ("min", [1, 2, 2], 1),
        ("majority", [1, 2, 2], 2),
        ("majority", [7], 7),
        ("majority", [4, 2, 2, 3, 3, 5], 2.5),  # the mean of the two winners
        ("majority", [5, 1, 3], 3),  # all win
        ("mean", [3.4e38, 3.4e38], 3.4e38),
    ],
)
def test_draws_become_one_score(how: Aggregation, draws: list[float], score: float) -> None:
    assert aggregate([float(draw) for draw in draws], how) == pytest.approx(score, rel=1e-15)


def test_an_unknown_way_is_refused_with_the_known_ones() -> None:
    assert parse_aggregation("mean", "--aggregation") == "mean"
    with pytest.raises(ConfigError, match='--aggregation "median" is unknown; give one of mean, max, min, majority'):
        parse_aggregation("median", "--aggregation")


def test_draws_that_do_not_count_are_counted_with_their_place() -> None:
    values = [1, 2.0, None, math.nan, -math.inf, 1e39, "3", True, [1], 2.5, 6, MISSING]
    invalid = Tally()
    assert Scoring("mean", Scale((0.0, 1.0, 2.0))).valid_draws(values, invalid, "x.jsonl:8") == [1.0, 2.0]
    assert {reason: (invalid.counts[reason], examples[0]) for reason, examples in invalid.examples.items()} == {
        "null": (1, "x.jsonl:8: null"),
        "not_finite": (3, "x.jsonl:8: nan"),
        "not_a_number": (3, "x.jsonl:8: 3"),
        "not_a_label": (2, "x.jsonl:8: 2.5"),
        "missing": (1, "x.jsonl:8: nothing"),
    }


def test_a_draw_of_any_depth_can_be_an_example() -> None:
    deep: list[object] = []
    for _ in range(5000):
        deep = [deep]
    invalid = Tally()
    assert Scoring("mean").valid_draws([deep], invalid, "x:1") == []
    assert invalid.examples == {"not_a_number": ["x:1: a list"]}


def test_without_labels_any_finite_number_counts() -> None:
    invalid = Tally()
    assert Scoring("mean").valid_draws([-7.5, 1e38, None], invalid, "x:1") == [-7.5, 1e38]
    assert invalid.total == 1


@pytest.mark.parametrize(("draws", "score"), [([1, 2, 2, None], 5 / 3), ([None, "2"], None), ([], None)])
def test_a_document_without_a_valid_draw_has_no_score(draws: list[object], score: float | None) -> None:
    assert Scoring("mean").score(draws, Tally(), "x:1") == score


def test_the_last_score_of_a_document_is_kept_and_earlier_ones_are_counted() -> None:
    scores: dict[str, float | None] = {}
    duplicates = Tally()
    for document_id, score in (("a", 1.0), ("b", None), ("a", 1.0), ("b", 2.0)):
        keep_last(scores, document_id, score, duplicates)
    assert scores == {"a": 1.0, "b": 2.0}
    assert duplicates.examples == {"with_same_score": ["a"], "with_other_score": ["b"]}
