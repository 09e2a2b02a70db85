import json
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlfilter_core.corpus.documents import BadRecordError, id_of, parse_record
from mlfilter_core.corpus.exact_json import dumps, loads

LARGE = st.integers(-(2**200), 2**200)
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
VALUES = st.recursive(
    st.none() | st.booleans() | LARGE | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
    max_leaves=9,
)


@given(VALUES)
def test_values_are_read_and_written_exactly(value: Any) -> None:
    read = loads(json.dumps(value).encode())
    assert read == value and repr(read) == repr(value)
    assert repr(loads(dumps(value))) == repr(value)


@pytest.mark.parametrize("number", [2**63 - 1, 2**63, 2**64 - 1, 2**64, 2**127, -(2**63), -(2**63) - 1, -(2**90)])
def test_numbers_around_the_limits_of_64_bits(number: int) -> None:
    content = b'{"a": [{"id": %d}], "b": 1.5}' % number
    assert loads(content)["a"][0]["id"] == number
    assert loads(dumps(loads(content))) == loads(content)


@pytest.mark.parametrize("value", [1e300, -1e19, 2.0**63])
def test_large_floats_stay_floats(value: float) -> None:
    assert repr(loads(json.dumps([value]).encode())) == repr([value])


def test_what_fits_is_written_as_orjson_does() -> None:
    value = {"a": [1, "ä", None, 0.1], "b": np.float32(0.9)}
    option = orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY
    assert dumps(value, option) == orjson.dumps(value, option=option)
    large = dumps({**value, "id": 2**64}, option)
    assert large == '{"a":[1,"ä",null,0.1],"b":0.9,"id":18446744073709551616}\n'.encode()
    assert dumps([np.array([0.9, 1.5], np.float32), 2**64], option) == b"[[0.9,1.5],18446744073709551616]\n"


def test_ids_of_128_bits_are_not_rounded() -> None:
    ids = {id_of(parse_record(b'{"id": %d}' % (2**128 - 100 + i)), None, "") for i in range(8)}
    assert ids == {str(2**128 - 100 + i) for i in range(8)}


def test_numbers_that_cannot_be_held_reject_their_line() -> None:
    with pytest.raises(BadRecordError, match="not_json"):
        parse_record(b'{"id": %b}' % (b"9" * 5000))
    with pytest.raises(BadRecordError, match="not_json"):
        parse_record(b'{"id": %b%s%b}' % (b"[" * 1000, b"9" * 30, b"]" * 1000))


def test_what_neither_writes_is_an_error_of_orjson() -> None:
    nested: Any = 2**64
    for _ in range(5000):
        nested = [nested]
    for value in (nested, {"a": object(), "b": 2**64}, [object()]):
        with pytest.raises(orjson.JSONEncodeError):
            dumps(value)
