import numpy as np

from mlfilter_core.compute.splitmix64 import GAMMA, mix64, numbers_of_rows


def test_the_numbers_are_those_of_splitmix64() -> None:
    """The first three of the seed 0, as in the reference implementation by Sebastiano Vigna."""
    states = np.array([GAMMA * i % 2**64 for i in (1, 2, 3)], np.uint64)
    assert mix64(states).tolist() == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


def test_the_numbers_of_rows_depend_on_file_row_and_salt_alone() -> None:
    rows = np.arange(1000)
    numbers = numbers_of_rows("a/x", rows)
    assert numbers.dtype == np.uint64
    assert len(set(numbers.tolist())) == 1000
    assert numbers_of_rows("a/x", rows[7:9]).tolist() == numbers[7:9].tolist()
    for others in (numbers_of_rows("a/y", rows), numbers_of_rows("a/x", rows, b"other")):
        assert not set(numbers.tolist()) & set(others.tolist())
    assert abs(float(numbers.mean()) / 2**63 - 1) < 0.1
