import datetime
import uuid
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest

from mlfilter_core.corpus.arrow_values import UnreadTypeError, json_values

DAY = datetime.datetime(2020, 1, 2, 3, 4, 5, 678)
FIRST = datetime.datetime(1, 1, 1)
PAIRS = pa.map_(pa.string(), pa.int8())
UUID = uuid.UUID("30313233-3435-3637-3839-616263646566")

# Documented in docs/reference/formats.md.
VALUES: dict[str, tuple[list[Any], pa.DataType, list[Any]]] = {
    "string": (["a", "bé"], pa.string(), ["a", "bé"]),
    "large string": (["a"], pa.large_string(), ["a"]),
    "string view": (["a"], pa.string_view(), ["a"]),
    "dictionary": (["a", None, "b", "a"], pa.dictionary(pa.int8(), pa.string()), ["a", None, "b", "a"]),
    "integers": ([-(2**63), 2**63 - 1], pa.int64(), [-(2**63), 2**63 - 1]),
    "unsigned integers": ([2**64 - 1], pa.uint64(), [2**64 - 1]),
    "booleans": ([True, False], pa.bool_(), [True, False]),
    "floats": ([0.1, float("nan"), float("inf"), -float("inf")], pa.float64(), [0.1, "NaN", "Infinity", "-Infinity"]),
    "short floats": ([0.5], pa.float16(), [0.5]),
    "decimals": ([Decimal("1.20"), Decimal("0.1")], pa.decimal128(38, 2), [1.2, 0.1]),
    "long decimals": ([Decimal("12345678901234567.89")], pa.decimal128(38, 2), ["12345678901234567.89"]),
    "whole decimals": ([Decimal(2**64 - 1), Decimal(2**64)], pa.decimal256(40, 0), [2**64 - 1, str(2**64)]),
    "days": ([DAY.date(), FIRST.date()], pa.date32(), ["2020-01-02", "0001-01-01"]),
    "times": ([DAY.time()], pa.time64("us"), ["03:04:05.000678"]),
    "timestamps": ([DAY, FIRST], pa.timestamp("us"), ["2020-01-02T03:04:05.000678", "0001-01-01T00:00:00.000000"]),
    "timestamps of a zone": ([DAY.replace(microsecond=0)], pa.timestamp("s", "Asia/Seoul"), ["2020-01-02T03:04:05Z"]),
    "nanoseconds": ([1], pa.timestamp("ns"), ["1970-01-01T00:00:00.000000001"]),
    "durations": ([datetime.timedelta(seconds=5)], pa.duration("ms"), [5000]),
    "bytes": ([b"text", b"\xff\x00"], pa.binary(), ["text", {"base64": "/wA="}]),
    "bytes of a fixed size": ([b"ab", b"\xff\xfe"], pa.binary(2), ["ab", {"base64": "//4="}]),
    "lists": ([[1, None], None, []], pa.list_(pa.int8()), [[1, None], None, []]),
    "large lists": ([["a"]], pa.large_list(pa.string()), [["a"]]),
    "lists of a fixed size": ([[1, 2], None], pa.list_(pa.int8(), 2), [[1, 2], None]),
    "list views": ([[1], []], pa.list_view(pa.int8()), [[1], []]),
    "structs": ([{"a": 1}, None, {"a": None}], pa.struct({"a": pa.int8()}), [{"a": 1}, None, {"a": None}]),
    "structs without fields": ([{}, None], pa.struct([]), [{}, None]),
    "maps": ([[("k", 1), ("k", 2), ("l", 3)], None, []], PAIRS, [{"k": 2, "l": 3}, None, {}]),
    "maps with numbers as keys": ([[(7, "a")]], pa.map_(pa.int8(), pa.string()), [{"7": "a"}]),
    "nothing": ([None], pa.null(), [None]),
}  # fmt: skip


@pytest.mark.parametrize("name", VALUES)
def test_each_type_has_its_json_value(name: str) -> None:
    given, kind, expected = VALUES[name]
    array = pa.array([*given, None], kind)
    assert json_values(array) == [*expected, None]
    assert json_values(array[1:]) == [*expected, None][1:], "a slice of a column"
    assert json_values(pa.array([[*given], None, [*given]], pa.list_(kind))[1:]) == [None, expected]


def test_the_values_that_lie_in_others_have_theirs() -> None:
    kind = pa.struct({"scores": pa.list_(pa.struct({"value": pa.float32(), "day": pa.date32()})), "map": PAIRS})
    value = {"scores": [{"value": float("nan"), "day": DAY.date()}, None], "map": [("k", 1)]}
    assert json_values(pa.array([None, value, None], kind)[1:]) == [
        {"scores": [{"value": "NaN", "day": "2020-01-02"}, None], "map": {"k": 1}},
        None,
    ]


def test_extension_types_are_read_as_what_they_store() -> None:
    stored = pa.array([UUID.bytes, None], pa.binary(16))
    assert json_values(pa.ExtensionArray.from_storage(pa.uuid(), stored)) == [str(UUID), None]
    text = pa.array(['{"a": 1}'])
    assert json_values(pa.ExtensionArray.from_storage(pa.json_(), text)) == ['{"a": 1}']


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()])
def test_bytes_that_are_no_utf8_in_a_string_stay_as_they_are(kind: pa.DataType) -> None:
    stored = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary(), pa.string_view(): pa.binary_view()}
    buffers = pa.array([b"caf\xe9", b"ok"], stored[kind]).buffers()
    wrong = pa.Array.from_buffers(kind, 2, buffers)
    first, second = json_values(wrong)
    assert (first.encode("utf-8", "surrogateescape"), second) == (b"caf\xe9", "ok")


def test_a_type_that_is_not_read_is_named() -> None:
    with pytest.raises(UnreadTypeError, match="month_day_nano"):
        json_values(pa.array([(1, 2, 3)], pa.month_day_nano_interval()))
