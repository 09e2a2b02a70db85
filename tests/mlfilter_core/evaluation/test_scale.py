import numpy as np
import pytest

from mlfilter_core.errors import ConfigError
from mlfilter_core.evaluation.scale import Scale, parse_numbers, parse_scale


@pytest.mark.parametrize(
    ("labels", "scores", "places"),
    [
        # Between whole numbers half is rounded up, below 0 too, where int(x + 0.5) would not.
        ("0,1,2,3,4,5", [-0.6, 0.49, 0.5, 1.5, 2.5, 2.49, 4.5, 9.0], [0, 0, 1, 2, 3, 2, 5, 5]),
        ("-2,-1,0,1", [-9.0, -1.5, -1.51, -0.5, -0.51], [0, 1, 0, 2, 1]),
        ("1,3,5", [0.0, 1.9, 2.0, 3.9, 4.0], [0, 0, 1, 1, 2]),
        ("7", [-1.0, 7.0, 8.0], [0, 0, 0]),
    ],
)
def test_a_score_stands_for_the_next_label_and_half_way_for_the_higher(
    labels: str, scores: list[float], places: list[int]
) -> None:
    assert parse_scale(labels, "--labels").nearest(np.array(scores)).tolist() == places


def test_labels_are_sorted_and_named_as_people_write_them() -> None:
    scale = parse_scale("2, 0.5,-1", "--labels")
    assert scale == Scale((-1.0, 0.5, 2.0))
    assert scale.names == ("-1", "0.5", "2")
    assert [scale.spans(score) for score in (-1.01, -1.0, 1.7, 2.0, 2.01)] == [False, True, True, True, False]


@pytest.mark.parametrize("text", ["", "0,,2", "0,x", "0,nan", "inf"])
def test_what_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(
        ConfigError, match=r'--thresholds .*: ".*" is not a finite number; give numbers such as 0,1,2,3'
    ):
        parse_numbers(text, "--thresholds")


def test_a_repeated_label_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--labels 0,1,1\.0: 1 is repeated"):
        parse_scale("0,1,1.0", "--labels")
