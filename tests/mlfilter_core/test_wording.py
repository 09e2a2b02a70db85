import math
from collections.abc import Callable

import pytest

from mlfilter_core.wording import (
    count,
    duration,
    natural_order,
    number,
    plural,
    rate,
    rough_duration,
    rough_number,
    rough_share,
    share,
    size,
    sizes_apart,
)


@pytest.mark.parametrize(
    ("say", "n", "expected"),
    [
        (count, 1234.0, "1,234"),
        (number, 0.1234, "0.123"),
        (number, 999, "999"),
        (number, 12_345, "12,345"),
        (number, math.nan, "-"),
        (rough_number, 12_345, "12,345"),
        (rough_number, 1.234e9, "1.23 billion"),
        (rough_number, 999_900_000, "1 billion"),
        (rate, 0.04, "0.0"),
        (rate, 2.44, "2.4"),
        (rate, 1200, "1,200"),
        (size, 999, "999 B"),
        (size, 3_420_000, "3.42 MB"),
        (size, 999_700, "1 MB"),
        (size, 5e18, "5,000 PB"),
        (duration, 0.04, "0.0 s"),
        (duration, 59.94, "59.9 s"),
        (duration, 59.96, "1 min 0 s"),
        (duration, 125, "2 min 5 s"),
        (duration, 179.7, "3 min 0 s"),
        (duration, 3599.6, "1 h 0 min"),
        (duration, 11_520, "3 h 12 min"),
        (duration, 187_200, "2 days 4 h"),
        (rough_duration, 42, "42 s"),
        (rough_duration, 720, "12 minutes"),
        (rough_duration, 9000, "2.5 hours"),
        (rough_duration, 12 * 86400, "12.0 days"),
    ],
)
def test_numbers_are_rounded_to_what_a_person_reads(say: Callable[[float], str], n: float, expected: str) -> None:
    assert say(n) == expected


def test_names_that_are_whole_numbers_are_in_the_order_of_their_values() -> None:
    ordered = ["", "-10", "-2", "0", "2", "10", "2.5", "9" * 30, "de", "²"]
    assert sorted(set(ordered), key=natural_order) == ordered


def test_a_value_that_is_missing_is_a_dash() -> None:
    assert number(None) == "-"


def test_one_thing_is_singular_and_none_is_plural() -> None:
    assert [plural(n, "file") for n in (0, 1, 1234)] == ["0 files", "1 file", "1,234 files"]


def test_a_share_says_few_of_many_and_no_whole() -> None:
    assert [share(*pair) for pair in ((0, 10), (1, 100_000), (1, 3), (5, 0))] == ["0.0 %", "< 0.1 %", "33.3 %", "-"]


@pytest.mark.parametrize(
    ("part", "whole", "said"),
    [
        *((52, 52, "100 %"), (51.8, 52, "100 %"), (5.2, 52, "10 %"), (5, 52, "9.6 %"), (0.052, 52, "0.1 %")),
        *((1, 3, "33 %"), (0, 0, "0 %")),
    ],
)
def test_a_rough_share_has_two_digits(part: float, whole: float, said: str) -> None:
    assert rough_share(part, whole) == said


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (16 << 20, 5 << 20, ("16.8 MB", "5.24 MB")),
        (1_000_400_000, 1_000_000_000, ("1.0004 GB", "1 GB")),
        (1e9 + 1, 1e9, ("1.000000001 GB", "1 GB")),
        (0.4, 0, ("0 B", "0 B")),
    ],
)
def test_two_sizes_show_which_is_larger(one: float, other: float, expected: tuple[str, str]) -> None:
    assert sizes_apart(one, other) == expected
