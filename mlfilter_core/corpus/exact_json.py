"""JSON with exact whole numbers.

orjson is many times as fast as Python's module, and turns whole numbers above 64 bits to floats: ids of 128 bits would
become one.
"""

import json
from typing import Any

import orjson

MAX_EXACT = 1 << 63  # every whole number below is one for orjson, too
INT64 = range(-MAX_EXACT, MAX_EXACT)


def loads(content: bytes) -> Any:
    """Returns the value of a JSON text; whole numbers are exact.

    Raises:
        orjson.JSONDecodeError: It is not JSON, or has a number above 1.8e308, or large numbers in a thousand levels.
    """
    value = orjson.loads(content)
    if not _has_large(value, float, -MAX_EXACT, MAX_EXACT):
        return value
    try:
        return json.loads(content)
    except RecursionError as error:  # at about 1,000 levels, nearly as many as orjson reads
        raise orjson.JSONDecodeError(str(error), content.decode(), 0) from error


def dumps(value: Any, option: int = 0) -> bytes:
    """Returns a value as JSON, as `orjson.dumps` with its options; whole numbers are exact.

    Raises:
        orjson.JSONEncodeError: It is nested deeper than 254 levels, or cannot be written as JSON.
    """
    try:
        return orjson.dumps(value, option=option)
    except orjson.JSONEncodeError:
        if not _has_large(value, int, -MAX_EXACT - 1, 2 * MAX_EXACT):
            raise
    end = b"\n" if option & orjson.OPT_APPEND_NEWLINE else b""

    def of_numpy(number: Any) -> Any:
        return orjson.loads(orjson.dumps(number, option=option & ~orjson.OPT_APPEND_NEWLINE))

    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=of_numpy).encode() + end
    except (RecursionError, UnicodeEncodeError) as error:
        raise orjson.JSONEncodeError(str(error)) from error


def _has_large(value: Any, kind: type[int] | type[float], above: int, below: int) -> bool:
    """Returns whether a value has a number of a type that is not between two others."""
    left = [value]
    while left:
        item = left.pop()
        of = type(item)
        if of is kind:
            if not above < item < below:
                return True
        elif of is list or of is tuple:
            left.extend(item)
        elif isinstance(item, dict):
            left.extend(item.values())
    return False
