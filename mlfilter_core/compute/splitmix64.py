"""The mixing function of SplitMix64 (Steele, Lea and Flood, 2014): integers to pseudorandom bits."""

import hashlib

import numpy as np
from numpy.typing import NDArray

GAMMA = 0x9E3779B97F4A7C15  # SplitMix64 adds it to its state before each number


def mix64(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Returns 64 pseudorandom bits for each number, uint64 (n,), the same on every machine."""
    mixed = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def numbers_of_rows(name: str, rows: NDArray[np.integer], salt: bytes = b"") -> NDArray[np.uint64]:
    """Returns 64 pseudorandom bits for each row of a file, uint64 (n,), the same on every machine.

    Args:
        name: Name of the file.
        rows: Numbers of rows, from 0, (n,).
        salt: Tells draws for one purpose from those for another, at most 16 bytes.
    """
    digest = hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=8, salt=salt).digest()
    first = np.uint64((int.from_bytes(digest, "big") + GAMMA) % 2**64)
    return mix64(rows.astype(np.uint64) + first)
