import math
from pathlib import Path

import pytest

from mlfilter_core.errors import ConfigError
from mlfilter_core.evaluation.draws import MISSING, Aggregation, aggregate, parse_aggregation, valid_draws
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
    assert valid_draws(values, frozenset((0.0, 1.0, 2.0)), invalid, Path("x.jsonl"), 8) == [1.0, 2.0]
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
    assert valid_draws([deep], None, invalid, Path("x"), 1) == []
    assert invalid.examples == {"not_a_number": ["x:1: a list"]}


def test_without_labels_any_finite_number_counts() -> None:
    invalid = Tally()
    assert valid_draws([-7.5, 1e38, None], None, invalid, Path("x"), 1) == [-7.5, 1e38]
    assert invalid.total == 1
