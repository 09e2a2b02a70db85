import math
from collections.abc import Sequence
from typing import Any

import h5py
import numpy as np
import orjson
import pytest

from mlfilter_core.corpus import exact_json
from mlfilter_core.corpus.json_lines import Members, lines, members, value_texts

FLOATS = np.random.default_rng(0).standard_normal(1000) * 10.0 ** np.arange(-50, 50).repeat(10)


@pytest.mark.parametrize(
    "values",
    [
        FLOATS,
        np.clip(FLOATS, -3e38, 3e38).astype(np.float32),
        np.array([0.9, -0.0, 1e-45, 3.4e38, 16777216], np.float32),
        np.array([0.1, 65504, -2], np.float16),
        np.array([0.5, 3.4], ">f4"),
        np.array([[3.7, 1], [0.1, 2]], np.float32),
        np.array([-(2**63), 2**63 - 1]),
        np.array([0, 2**64 - 1], np.uint64),
        np.arange(-128, 128, dtype=np.int8)[::-1],
        np.array([True, False]),
        [np.array([0.1, 2], np.float32), np.zeros(0, np.float32)],
        ["", 'a","b', "\n,\n", "\\", '",\n"', "ä\x00\u2028"],
        [["news", "spam"], [], ["a,b"]],
        [None, True, 1, 2.5, "a", {"a": [1, {"b": "c\n"}]}, np.float32(0.1)],
        [2**80, "a", -(2**70), 1],
        [orjson.Fragment(b'{"a": 1e5}'), orjson.Fragment(b"1.0"), 1],
        [[1]],
        [],
        np.zeros(0, np.float32),
        np.zeros((0, 2)),
    ],
)
def test_each_value_has_the_text_that_it_has_alone(values: Sequence[Any]) -> None:
    alone = [exact_json.dumps({"a": value}, orjson.OPT_SERIALIZE_NUMPY)[5:-1] for value in values]
    assert value_texts(values) == alone


@pytest.mark.parametrize(
    "values",
    [
        np.array([1 + 2j]),
        np.array([(1, 2.0)], "i4,f4"),
        [1, object()],
        ["\ud800"],
        np.array([h5py.Empty("f4")], object),
        [2**80, object()],
    ],
)
def test_the_error_of_a_value_that_is_no_json_is_that_of_the_value_alone(values: Sequence[Any]) -> None:
    with pytest.raises(orjson.JSONEncodeError) as alone:
        for value in values:
            exact_json.dumps({"a": value}, orjson.OPT_SERIALIZE_NUMPY)
    with pytest.raises(orjson.JSONEncodeError) as together:
        value_texts(values)
    assert str(together.value) == str(alone.value)


@pytest.mark.parametrize("depth", range(250, 258))
def test_a_value_may_be_nested_as_deep_as_in_an_object_of_its_own(depth: int) -> None:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]

    def is_written(write: Any) -> bool:
        try:
            write()
        except orjson.JSONEncodeError:
            return False
        return True

    assert is_written(lambda: value_texts([value])) == is_written(lambda: exact_json.dumps({"a": value}))


def test_a_number_that_is_not_finite_is_null() -> None:
    assert value_texts(np.array([math.nan, math.inf, 1], np.float32)) == [b"null", b"null", b"1.0"]


def test_objects_have_their_members_in_order() -> None:
    of_objects = [
        members('k"', ["a", "b\n"]),
        members("n", [None, 2**70]),
        members("s", np.array([0.9, 2], np.float32)),
    ]
    assert lines(of_objects) == (b'{"k\\"":"a","n":null,"s":0.9}\n{"k\\"":"b\\n","n":1180591620717411303424,"s":2.0}\n')
    assert lines(of_objects[:1]) == b'{"k\\"":"a"}\n{"k\\"":"b\\n"}\n'


def test_an_object_may_have_several_members_or_none_in_a_place() -> None:
    several = Members(b"", [b'"a": 1, "a":2,', b"", b'"b":[],'], b"")
    assert lines([several, members("s", [1, 2, 3])]) == b'{"a": 1, "a":2,"s":1}\n{"s":2}\n{"b":[],"s":3}\n'


def test_no_objects_are_no_lines() -> None:
    assert lines([members("a", []), members("b", np.zeros(0))]) == b""
