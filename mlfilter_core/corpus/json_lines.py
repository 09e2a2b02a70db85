"""Lines of JSON objects from columns of values, a column at a time.

A call of orjson takes as long as ten numbers to write. Knows nothing about files.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from mlfilter_core.corpus import exact_json

# No text of a value has a line feed: in strings it is an escape.
_LINE_FEED = orjson.Fragment(b"\n")


@dataclass(frozen=True, slots=True)
class Members:
    """What each of several objects has in one place: a member such as `"id":"a",`, several, or none.

    Attributes:
        before: Text before each of `texts`, such as `"id":`.
        texts: A text for each object; where `before` is empty, members with a comma after each.
        after: Text after each of `texts`, such as a comma.
    """

    before: bytes
    texts: Sequence[bytes]
    after: bytes


def value_texts(values: Sequence[Any] | NDArray[Any]) -> list[bytes]:
    """Returns each value as JSON; whole numbers are exact.

    Args:
        values: Values that may be or contain NumPy's: float32 has its own digits, 0.9 and not 0.8999999761581421.

    Raises:
        orjson.JSONEncodeError: One is nested deeper than 253 levels, or cannot be written as JSON.
    """
    if not len(values):
        return []
    try:
        if isinstance(values, np.ndarray) and values.ndim == 1:
            return _dumps(np.ascontiguousarray(values))[1:-1].split(b",")
        apart: list[Any] = [_LINE_FEED] * (2 * len(values) - 1)
        apart[::2] = values
        return _dumps(apart)[1:-1].split(b",\n,")
    except orjson.JSONEncodeError:  # a number above 64 bits, an array of objects, or what is no JSON at all
        return [exact_json.dumps([value], orjson.OPT_SERIALIZE_NUMPY)[1:-1] for value in values]


def members(key: str, values: Sequence[Any] | NDArray[Any]) -> Members:
    """Returns one member for each object.

    Raises:
        orjson.JSONEncodeError: As `value_texts`.
    """
    return Members(_dumps(key) + b":", value_texts(values), b",")


def lines(of_objects: Sequence[Members]) -> bytes:
    """Returns a line for each object, with the members in order. Each object must have one in the last place.

    Example: the members `a`: 1, 2 and `b`: 3, 4 give `{"a":1,"b":3}` and `{"a":2,"b":4}`.
    """
    n, width = len(of_objects[-1].texts), 2 * len(of_objects)
    pieces = [b""] * (n * width)
    after = b"}\n{"  # of the object before
    for i, each in enumerate(of_objects):
        pieces[2 * i :: width] = [after + each.before] * n
        pieces[2 * i + 1 :: width] = each.texts
        after = each.after
    if n:
        pieces[0] = b"{" + of_objects[0].before
        pieces.append(b"}\n")
    return b"".join(pieces)


def _dumps(value: Any) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
