"""JSON with exact whole numbers.

orjson is many times as fast as Python's module, and turns whole numbers above 64 bits to floats: ids of 128 bits would
become one.
"""

import json
from typing import Any

import orjson

MAX_EXACT = 1 << 63  # every whole number below is one for orjson, too


def loads(content: bytes) -> Any:
    """Returns the value of a JSON text; whole numbers are exact.

    Raises:
        orjson.JSONDecodeError: It is not JSON, or has a number above 1.8e308, or large numbers in a thousand levels.
    """
    value = orjson.loads(content)
    if not _has_large_float(value):
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
        if not _has_large_int(value):
            raise
    end = b"\n" if option & orjson.OPT_APPEND_NEWLINE else b""

    def of_numpy(number: Any) -> Any:
        return orjson.loads(orjson.dumps(number, option=option & ~orjson.OPT_APPEND_NEWLINE))

    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=of_numpy).encode() + end
    except (RecursionError, UnicodeEncodeError) as error:
        raise orjson.JSONEncodeError(str(error)) from error


def _has_large_float(value: Any) -> bool:
    left = [value]
    while left:
        item = left.pop()
        kind = type(item)
        if kind is dict:
            left.extend(item.values())
        elif kind is list:
            left.extend(item)
        elif kind is float and not -MAX_EXACT < item < MAX_EXACT:
            return True
    return False


def _has_large_int(value: Any) -> bool:
    left = [value]
    while left:
        item = left.pop()
        if isinstance(item, dict):
            left.extend(item.values())
        elif isinstance(item, list | tuple):
            left.extend(item)
        elif isinstance(item, int) and not -MAX_EXACT <= item < 2 * MAX_EXACT:
            return True
    return False
