import json
import tracemalloc
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlfilter_core.corpus.source_text import SourceRecord, joined, without_spaces

# A busy machine may be slow.
examples = settings(derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow])

TEXT = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from('"\\/,:{}[]'))
NUMBERS = st.sampled_from(
    ["0", "-0", "1.0", "1e5", "1E+5", "0.10", "-2.50e-3", "1" + "0" * 30, "12345678901234567890.5"]
)
# Few keys, so that they occur twice, as the keys of inner objects and as strings.
KEYS = st.sampled_from(["a", "b", "a.b", "", "ä", 'x"y', "x\\", "a b", "/"])
SPACE = st.sampled_from(["", " ", "\t ", "\r"])


@st.composite
def string(draw: st.DrawFn, values: st.SearchStrategy[str] = TEXT) -> str:
    return json.dumps(draw(values), ensure_ascii=draw(st.booleans())).replace("/", draw(st.sampled_from(["/", "\\/"])))


@st.composite
def written(draw: st.DrawFn, depth: int = 0) -> str:
    """Returns a JSON object as text, with white space, escapes, and keys that occur twice."""

    def spaced(value: str) -> str:
        return draw(SPACE) + value + draw(SPACE)

    scalars = string() | string(KEYS) | NUMBERS | st.sampled_from(["null", "true", "[]", "{}", '[1.0, {"a": "]"}]'])
    values = scalars | written(depth + 1) if depth < 2 else scalars
    pairs = draw(st.lists(st.tuples(string(KEYS), values), max_size=5))
    return "{" + ",".join(spaced(key) + ":" + spaced(value) for key, value in pairs) + draw(SPACE) + "}"


def exact(text: bytes) -> Any:
    """Returns a JSON value with numbers as strings and objects as pairs, read by another parser."""
    return json.loads(text, parse_float=_Number, parse_int=_Number, object_pairs_hook=tuple)


class _Number(str):
    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Number) and str(self) == str(other)

    __hash__ = str.__hash__


def values(record: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns the value of each key and each dotted path; a key precedes a path."""
    found: dict[str, Any] = {}
    for key, value in record.items():
        if isinstance(value, dict):
            found |= values(value, f"{prefix}{key}.")
    return found | {f"{prefix}{key}": value for key, value in record.items()}


@examples
@given(written())
def test_the_text_of_each_value_is_what_the_source_says(text: str) -> None:
    record = SourceRecord(orjson.loads(text), text.encode())
    pairs = exact(text.encode())
    for key in record:
        (*_, last) = (value for name, value in pairs if name == key)
        assert exact(record.text_at(key)) == last
        assert record.text_at(key) in text.encode()


@examples
@given(written())
def test_spaces_and_escapes_go_and_all_else_stays(text: str) -> None:
    found = without_spaces(text.encode())
    assert exact(found) == exact(text.encode())
    plain = json.dumps(exact(text.encode()), ensure_ascii=False, separators=(",", ":"))  # objects are arrays there
    assert len(found) <= len(plain.encode())


@examples
@given(st.lists(written(), min_size=1, max_size=3))
def test_joined_objects_have_the_members_of_all(texts: list[str]) -> None:
    both = joined(*(text.encode() for text in texts))
    assert exact(both) == tuple(pair for text in texts for pair in exact(text.encode()))
    assert all(text.strip()[1:-1].strip() in both.decode() for text in texts)


@pytest.mark.parametrize(
    ("text", "key", "found"),
    [
        ('{"a": {"b": 1.0}, "a.b": 2.0}', "a.b", "2.0"),
        ('{"a": {"b": 1.0, "b": 1e0}}', "a.b", "1e0"),
        ('{"x": {"b": 2.50}, "a": {"b": 1.0}}', "a.b", "1.0"),
        ('{"a": 1.0, "x": {"a": 2.0}}', "a", "1.0"),
        ('{"\\u0061": 1.00, "x": {"a": 1.0}}', "a", "1.00"),
        ('{"x": "a", "a": 1.0}', "a", "1.0"),
        ('{"x\\"a": 1.0, "a" : 1.00}', "a", "1.00"),
        ('{"x\\"a": 1.0, "\\u0061": 1.00}', "a", "1.00"),
        ('{"x": "\\"a\\": 5.0", "a": [ 1.0, {"}": "]"} ] , "b": 1}', "a", '[ 1.0, {"}": "]"} ]'),
        ('{"x": "\\\\", "a":1.0}', "a", "1.0"),
        ('{"ä": 1.0}', "ä", "1.0"),
    ],
)
def test_keys_that_look_alike_are_told_apart(text: str, key: str, found: str) -> None:
    assert SourceRecord(orjson.loads(text), text.encode()).text_at(key) == found.encode()


def test_a_byte_order_mark_and_a_carriage_return_are_not_copied() -> None:
    assert joined(b'\xef\xbb\xbf{"a": 1.0 }\r', b'{"b":2}') == b'{"a": 1.0,"b":2}'
    assert joined(b" { } ", b'{"b":2}') == b'{"b":2}'


def test_long_strings_full_of_escapes_take_no_more_memory_than_parsing() -> None:
    text = b'{"t": "' + b'\\"\\\\' * 1_000_000 + b'", "\xc3\xa4": 1.50}'
    tracemalloc.start()
    record = SourceRecord(orjson.loads(text), text)
    of_parsing = tracemalloc.get_traced_memory()[1]
    assert record.text_at("ä") == b"1.50"
    assert len(without_spaces(text)) > len(text) - 10
    of_all = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert of_all < of_parsing + 5 * len(text)
