import numpy as np

from mlfilter_core.compute.splitmix64 import GAMMA, mix64


def test_the_numbers_are_those_of_splitmix64() -> None:
    """The first three of the seed 0, as in the reference implementation by Sebastiano Vigna."""
    states = np.array([GAMMA * i % 2**64 for i in (1, 2, 3)], np.uint64)
    assert mix64(states).tolist() == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
