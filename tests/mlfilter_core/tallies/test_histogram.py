import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlfilter_core.tallies.histogram import (
    MAX_BINS,
    WHOLE_NUMBERS,
    Histogram,
    histogram,
    read_histogram,
    total,
    write_histogram,
)

NUMBERS = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=60)


@given(st.tuples(NUMBERS, NUMBERS, NUMBERS))
def test_the_sum_over_files_is_the_histogram_of_all_their_values(files: tuple[list[float], ...]) -> None:
    parts = [histogram(np.array(values, np.float32)) for values in files]
    whole = histogram(np.array([value for values in files for value in values], np.float32))
    assert parts[0] + parts[1] + parts[2] == parts[0] + (parts[1] + parts[2])
    if whole.n:
        assert total(parts) == whole
    assert total(parts).n == whole.n == sum(map(len, files))


def test_bins_hold_what_lies_between_their_edges() -> None:
    values = np.random.default_rng(0).normal(3, 1, 5000).astype(np.float32)
    found = histogram(values)
    assert MAX_BINS / 2 <= len(found.counts) <= MAX_BINS
    expected, _ = np.histogram(values.astype(np.float64), found.edges())
    assert found.counts.tolist() == expected.tolist()


def test_whole_numbers_have_bins_of_their_own_as_long_as_there_are_few() -> None:
    found = histogram(np.array([3, 3, 5, 250]), WHOLE_NUMBERS)
    assert (found.width, found.first, found.counts[[0, 2, -1]].tolist()) == (1.0, 3, [2, 1, 1])
    assert histogram(np.arange(1, 8193), WHOLE_NUMBERS).width == 32.0


def test_quantiles_are_those_of_the_values_to_the_width_of_a_bin() -> None:
    values = np.random.default_rng(1).lognormal(5, 1, 20_000)
    found = histogram(values)
    for share in (0.0, 0.1, 0.5, 0.9, 0.99, 1.0):
        assert found.quantile(share) == pytest.approx(np.quantile(values, share), abs=found.width)
    assert math.isnan(Histogram().quantile(0.5))


@pytest.mark.parametrize("value", [0.0, 0.25, -1e-38, 3e38, -7.5])
def test_equal_values_are_one_bin(value: float) -> None:
    found = histogram(np.full(9, value, np.float32))
    assert found.counts.tolist() == [9]
    assert found.edges()[0] <= np.float32(value) < found.edges()[1]


def test_fewer_bins_hold_the_same_values() -> None:
    found = histogram(np.arange(300), WHOLE_NUMBERS).coarser(40)
    assert (found.width, found.n, len(found.counts)) == (8.0, 300, 38)


def test_a_histogram_comes_back_from_json() -> None:
    found = histogram(np.array([-2.5, 0.125, 7.0]))
    assert read_histogram(write_histogram(found)) == found
    assert read_histogram(write_histogram(Histogram())) == Histogram()


@pytest.mark.parametrize(
    "written",
    [
        {"exponent": 0, "first": 0, "counts": [1] * (MAX_BINS + 1)},
        {"exponent": 0, "first": 0, "counts": [-1]},
        {"exponent": 5000, "first": 0, "counts": [1]},
        {"exponent": 0, "first": 2**60, "counts": [1]},
    ],
)
def test_what_no_histogram_can_be_is_refused(written: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="histogram"):
        read_histogram(written)
