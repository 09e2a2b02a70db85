"""The values of an Arrow array as JSON values, each type in one documented way.

docs/reference/formats.md describes them. Knows nothing about files.
"""

import base64
import math
import uuid
from collections.abc import Callable
from decimal import Decimal
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

INTEGERS = range(-(2**63), 2**64)  # that orjson reads as integers


class UnreadTypeError(Exception):
    """A type that has no JSON value here; the message is its name."""


def json_values(array: "pa.Array") -> list[Any]:
    """Returns one JSON value for each element.

    A string that is not UTF-8 has its wrong bytes as surrogates, as the error handler `surrogateescape` makes them.

    Raises:
        UnreadTypeError: The type, or that of an element, is not read.
    """
    import pyarrow as pa

    types = pa.types
    kind = array.type
    if isinstance(kind, pa.BaseExtensionType):
        return _uuids(array.storage) if kind.extension_name == "arrow.uuid" else json_values(array.storage)
    converters: list[tuple[Callable[[Any], bool], Callable[[Any], list[Any]]]] = [
        (lambda of: types.is_string(of) or types.is_large_string(of) or types.is_string_view(of), _strings),
        (lambda of: types.is_integer(of) or types.is_boolean(of) or types.is_null(of), lambda of: of.to_pylist()),
        (types.is_floating, _floats),
        (types.is_dictionary, _dictionary),
        (types.is_decimal, _decimals),
        (types.is_timestamp, _timestamps),
        (lambda of: types.is_date(of) or types.is_time(of), lambda of: of.cast(pa.string()).to_pylist()),
        (types.is_duration, lambda of: of.cast(pa.int64()).to_pylist()),
        (types.is_map, _maps),
        (types.is_struct, _structs),
        (types.is_nested, _lists),
        (lambda of: types.is_fixed_size_binary(of) or _is_binary(of), _binary),
    ]
    for is_of_kind, convert in converters:
        if is_of_kind(kind):
            return convert(array)
    raise UnreadTypeError(str(kind))


def _is_binary(kind: "pa.DataType") -> bool:
    import pyarrow as pa

    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _strings(array: "pa.Array") -> list[Any]:
    import pyarrow as pa

    try:
        values: list[Any] = array.to_pylist()
    except UnicodeDecodeError:
        raw = array.cast(pa.large_binary()).to_pylist()
        return [None if value is None else value.decode("utf-8", "surrogateescape") for value in raw]
    return values


def _floats(array: "pa.Array") -> list[Any]:
    """Returns numbers; `NaN`, `Infinity` and `-Infinity` as strings, as JSON has no numbers for them."""
    import pyarrow as pa

    values: list[Any] = array.cast(pa.float64()).to_pylist()
    return [value if value is None or math.isfinite(value) else _NAMES.get(value, "NaN") for value in values]


_NAMES = {math.inf: "Infinity", -math.inf: "-Infinity"}  # as in the JSON mapping of Protocol Buffers


def _dictionary(array: "pa.Array") -> list[Any]:
    values = json_values(array.dictionary)
    return [None if index is None else values[index] for index in array.indices.to_pylist()]


def _decimals(array: "pa.Array") -> list[Any]:
    """Returns numbers where a JSON number keeps all digits, otherwise strings of the digits."""
    is_integer = array.type.scale <= 0

    def convert(value: Decimal) -> Any:
        if is_integer:
            return int(value) if int(value) in INTEGERS else f"{value:f}"
        number = float(value)
        return number if Decimal(repr(number)) == value else f"{value:f}"

    return [None if value is None else convert(value) for value in array.to_pylist()]


def _timestamps(array: "pa.Array") -> list[Any]:
    import pyarrow as pa

    kind = array.type
    suffix = "Z" if kind.tz else ""  # a stored time zone says how to show a time, which is of UTC
    values = array.cast(pa.timestamp(kind.unit)).cast(pa.string()).to_pylist()
    return [None if value is None else f"{value.replace(' ', 'T')}{suffix}" for value in values]


def _binary(array: "pa.Array") -> list[Any]:
    """Returns strings; bytes that are not UTF-8 as `{"base64": "..."}`, which nothing takes for a text."""

    def convert(value: bytes) -> Any:
        try:
            return value.decode()
        except UnicodeDecodeError:
            return {"base64": base64.b64encode(value).decode()}

    return [None if value is None else convert(value) for value in array.to_pylist()]


def _uuids(array: "pa.Array") -> list[Any]:
    return [None if value is None else str(uuid.UUID(bytes=value)) for value in array.to_pylist()]


def _structs(array: "pa.Array") -> list[Any]:
    names = [field.name for field in array.type]
    columns = [json_values(child) for child in array.flatten()]
    rows = zip(*columns, strict=True) if columns else ((),) * len(array)
    is_valid = array.is_valid().to_pylist()
    return [dict(zip(names, row, strict=True)) if valid else None for row, valid in zip(rows, is_valid, strict=True)]


def _lists(array: "pa.Array") -> list[Any]:
    import pyarrow as pa
    from pyarrow import compute

    if not any(
        is_list(array.type)
        for is_list in (
            *(pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list),
            *(pa.types.is_list_view, pa.types.is_large_list_view),
        )
    ):
        raise UnreadTypeError(str(array.type))
    values = iter(json_values(compute.list_flatten(array)))
    lengths = compute.list_value_length(array).to_pylist()
    return [None if length is None else [next(values) for _ in range(length)] for length in lengths]


def _maps(array: "pa.Array") -> list[Any]:
    """Returns objects; of a key that occurs twice the last value counts, as the format says."""
    keys = [key if isinstance(key, str) else str(key) for key in json_values(array.keys)]
    values = json_values(array.items)
    offsets = array.offsets.to_pylist()
    return [
        dict(zip(keys[start:end], values[start:end], strict=True)) if valid else None
        for start, end, valid in zip(offsets, offsets[1:], array.is_valid().to_pylist(), strict=False)
    ]
