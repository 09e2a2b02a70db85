"""Arrays of NumPy archives (.npz), read without `np.load`.

That takes 40 µs to parse each header, a minute for a million files.
"""

import errno
import struct
import zipfile
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

# What zipfile, and orjson for JSON in an array, raise for a damaged archive; a flag that they do not support is a
# RuntimeError. zipfile also raises OSErrors, without a number or with EINVAL for a place before 0.
DAMAGED = (ValueError, KeyError, EOFError, RuntimeError, struct.error, zlib.error, zipfile.BadZipFile)


def is_damage(error: Exception) -> bool:
    """Returns whether one of `DAMAGED`, or an OSError, says that an archive is missing or damaged.

    Other errors are of the file system: another attempt may succeed.
    """
    return not isinstance(error, OSError) or error.errno in (None, errno.ENOENT, errno.EINVAL)


def column(archive: zipfile.ZipFile, name: str, *dtypes: type[np.generic]) -> NDArray[Any]:
    """Returns an array of an archive, flat and read-only.

    Args:
        archive: The archive, as `np.savez` writes it.
        name: Name of the array.
        dtypes: Types that it may have.

    Raises:
        One of `DAMAGED`: It is damaged, which its CRC-32 shows, or of another type.
    """
    content = archive.read(f"{name}.npy")
    # Where version 1.0 of https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html begins its numbers.
    start = 10 + int.from_bytes(content[8:10], "little")
    for dtype in map(np.dtype, dtypes):
        if dtype.str.encode() in content[:start]:
            return np.frombuffer(content, dtype, offset=start)
    raise ValueError(f"its array {name} has another type")
