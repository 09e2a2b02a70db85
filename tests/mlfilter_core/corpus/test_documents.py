import json
import math
from typing import Any

import pytest

from mlfilter_core.corpus.documents import (
    BadRecordError,
    Document,
    DocumentSchema,
    Rejection,
    as_string,
    find_value,
    hash_text,
    parse_document,
    parse_record,
)
from mlfilter_core.corpus.lines import Line

TEXT = DocumentSchema(("text",))


def parse(record: Any, schema: DocumentSchema = TEXT) -> Document | Rejection:
    content = record if isinstance(record, bytes) else json.dumps(record).encode()
    return parse_document(Line(7, 100, content), schema, "a/b.jsonl")


def document(record: Any, schema: DocumentSchema = TEXT) -> Document:
    parsed = parse(record, schema)
    assert isinstance(parsed, Document), parsed
    return parsed


def rejection(record: Any, schema: DocumentSchema = TEXT) -> Rejection:
    parsed = parse(record, schema)
    assert isinstance(parsed, Rejection), parsed
    assert (parsed.line, parsed.offset) == (7, 100)
    return parsed


def test_a_document_keeps_line_offset_id_text_index_and_labels() -> None:
    schema = DocumentSchema(("text",), index_keys=("url", "text"), label_keys=("score",))
    assert document({"id": "x1", "text": "hello", "url": "u", "score": 2.5}, schema) == Document(
        line=7, offset=100, id="x1", text="hello", index=("u", "hello"), labels=(2.5,)
    )


@pytest.mark.parametrize(
    ("content", "reason", "detail"),
    [
        (b'{"text": "a"', "not_json", "column"),
        (b"not json at all", "not_json", "column"),
        (b'{"text": NaN}', "not_json", "column"),
        (b'{"text": 1e999}', "not_json", "infinity"),
        (b'{"text": "a"} {"text": "b"}', "not_json", "column"),
        (b'{"text": "lone \\ud800 surrogate"}', "not_json", "surrogate"),
        (b'{"text": "a\x01b"}', "not_json", "control character"),
        (b"[" * 5000 + b"]" * 5000, "not_json", "depth"),
        (b'{"text": "caf\xe9"}', "not_utf8", "0xe9"),
        (b'{"text": "a\xed\xa0\x80"}', "not_utf8", "0xed"),
        (b'["text"]', "not_an_object", "an array"),
        (b'"text"', "not_an_object", "a string"),
        (b"3", "not_an_object", "a number"),
        (b"true", "not_an_object", "a boolean"),
        (b"null", "not_an_object", "null"),
        (b'{"body": "a", "url": "u"}', "missing_key", '"text" is missing; the record has: body, url'),
        (b"{}", "missing_key", '"text" is missing; the record has: none'),
        (b'{"text": null}', "not_a_string", '"text" is null, not a string'),
        (b'{"text": 3}', "not_a_string", '"text" is a number, not a string'),
        (b'{"text": ["a"]}', "not_a_string", '"text" is an array, not a string'),
        (b'{"text": {"a": 1}}', "not_a_string", '"text" is an object, not a string'),
        (b'{"text": ""}', "empty_text", "nothing to embed in text"),
        (b'{"text": " \\n\\t\\u3000"}', "empty_text", "nothing to embed in text"),
        (b'{"text": "a\\u0000b"}', "nul_character", '"text" contains a NUL character'),
    ],
    ids=lambda value: value[:25].decode("latin-1") if isinstance(value, bytes) else None,
)
def test_a_line_that_is_no_document_is_rejected_with_its_reason(content: bytes, reason: str, detail: str) -> None:
    rejected = rejection(content)
    assert rejected.reason == reason
    assert detail in rejected.detail


def test_a_byte_order_mark_and_a_carriage_return_do_not_matter() -> None:
    assert document(b'\xef\xbb\xbf{"text": "a"}\r').text == "a"


def test_what_looks_empty_to_a_person_but_is_not_whitespace_is_text() -> None:
    assert document({"text": "\u200b"}).text == "\u200b"


def test_a_dotted_key_is_a_path() -> None:
    assert find_value({"scores": {"a": {"b": 3}}}, "scores.a.b") == 3
    assert document({"meta": {"body": "x"}}, DocumentSchema(("meta.body",))).text == "x"


def test_a_key_that_holds_dots_itself_wins_over_the_path() -> None:
    assert find_value({"a.b": 1, "a": {"b": 2}}, "a.b") == 1


@pytest.mark.parametrize("record", [{}, {"a": {}}, {"a": 3}, {"a": "b"}, {"a": [{"b": 1}]}, {"a": None}])
def test_a_path_that_leads_nowhere_is_a_key_error(record: dict[str, Any]) -> None:
    with pytest.raises(KeyError, match=r"a\.b"):
        find_value(record, "a.b")


def test_several_texts_are_joined_with_one_line_feed() -> None:
    schema = DocumentSchema(("title", "body"))
    assert document({"body": "b", "title": "t"}, schema).text == "t\nb"
    assert document({"body": "b", "title": ""}, schema).text == "\nb"
    assert rejection({"body": "", "title": ""}, schema).detail == "nothing to embed in title, body"
    assert rejection({"body": "b"}, schema).detail == '"title" is missing; the record has: body'


def test_the_default_id_is_the_first_of_four_keys_else_file_and_line() -> None:
    record: dict[str, Any] = {"uuid": "4", "id": "3", "doc_id": "2", "document_id": "1", "text": "a"}
    for expected in "1234":
        assert document(record).id == expected
        del record[next(key for key in ("document_id", "doc_id", "id", "uuid") if key in record)]
    assert document(record).id == "a/b.jsonl:7"


@pytest.mark.parametrize(
    ("value", "expected"),
    [(3, "3"), (0, "0"), (2**64 - 1, "18446744073709551615"), (-1, "-1"), ("ä", "ä"), ({"a": 1}, '{"a":1}')],
)
def test_an_id_that_is_not_a_string_becomes_json(value: Any, expected: str) -> None:
    assert document({"id": value, "text": "a"}).id == expected
    assert document({"key": value, "text": "a"}, DocumentSchema(("text",), id_key="key")).id == expected


@pytest.mark.parametrize("nothing", [None, ""])
def test_an_id_without_content_is_no_id(nothing: Any) -> None:
    assert document({"id": nothing, "uuid": "u", "text": "a"}).id == "u"
    assert document({"id": nothing, "text": "a"}).id == "a/b.jsonl:7"
    rejected = rejection({"id": nothing, "text": "a"}, DocumentSchema(("text",), id_key="id"))
    assert (rejected.reason, rejected.detail) == ("missing_key", '"id" is empty')


def test_a_named_id_key_is_required() -> None:
    rejected = rejection({"id": "x", "text": "a"}, DocumentSchema(("text",), id_key="meta.key"))
    assert (rejected.reason, rejected.detail) == (
        "missing_key",
        '"meta.key" is missing; the record has: id, text',
    )


@pytest.mark.parametrize("key", ["id", "url"])
def test_a_nul_character_in_what_is_stored_is_rejected(key: str) -> None:
    rejected = rejection(
        {"id": "i", "url": "u", "text": "a", key: "a\0"}, DocumentSchema(("text",), index_keys=("url",))
    )
    assert (rejected.reason, rejected.detail) == ("nul_character", f'"{key}" contains a NUL character')


@pytest.mark.parametrize(
    ("value", "stored"),
    [("s", "s"), ("", ""), (3, "3"), (2.5, "2.5"), (True, "true"), (None, "null"), (["ä", 1], '["ä",1]')],
)
def test_index_values_are_strings_or_json(value: Any, stored: str) -> None:
    assert document({"text": "a", "key": value}, DocumentSchema(("text",), index_keys=("key",))).index == (stored,)
    assert as_string(value) == stored


@pytest.mark.parametrize(
    ("written", "stored"),
    [
        *(("1.0", "1.0"), ("1e5", "1e5"), ("0.10", "0.10"), ("-0", "-0"), ("0", "0"), ("1E400", None)),
        *(("12345678901234567890123", "12345678901234567890123"), ("9223372036854775808", "9223372036854775808")),
        ('{"b" : 1.50, "a": [1e5, -0],\t"b": "caf\\u00e9\\/"}', '{"b":1.50,"a":[1e5,-0],"b":"café/"}'),
        ('"caf\\u00e9"', "café"),
    ],
)
def test_stored_values_are_what_the_source_says(written: str, stored: str | None) -> None:
    content = f'{{"id": {written}, "meta": {{"key": 1, "key": {written} }}, "text": "a"}}'.encode()
    parsed = parse_document(Line(1, 0, content), DocumentSchema(("text",), index_keys=("meta.key",)), "x")
    if stored is None:
        assert isinstance(parsed, Rejection)
    else:
        assert isinstance(parsed, Document)
        assert (parsed.id, parsed.index) == (stored, (stored,))


def test_an_index_value_that_is_nested_too_deep_is_rejected() -> None:
    """orjson reads 1024 levels, but writes 254."""
    content = b'{"text": "a", "key": ' + b"[" * 500 + b"]" * 500 + b"}"
    rejected = rejection(content, DocumentSchema(("text",), index_keys=("key",)))
    assert (rejected.reason, rejected.detail) == ("nested_too_deep", '"key" is nested too deep to be stored as JSON')
    assert document(content).text == "a"


def test_a_missing_index_key_is_rejected() -> None:
    assert rejection({"text": "a"}, DocumentSchema(("text",), index_keys=("url",))).reason == "missing_key"


def test_the_default_label_is_label_else_score_else_scores_score() -> None:
    schema = DocumentSchema(("text",), label_keys=None)
    assert schema.label_shape == ()
    assert document({"text": "a", "label": 1, "score": 2}, schema).labels == (1,)
    assert document({"text": "a", "score": 2}, schema).labels == (2,)
    assert document({"text": "a", "scores": {"score": 3}}, schema).labels == (3,)
    rejected = rejection({"text": "a"}, schema)
    assert rejected.reason == "missing_label"
    assert rejected.detail == 'neither "label" nor "score" nor "scores.score" is present; the record has: text'


def test_a_key_alone_makes_a_number_and_a_list_of_keys_makes_columns() -> None:
    record = {"text": "a", "y": 5}
    for keys, shape in (("y", ()), (("y",), (1,))):
        schema = DocumentSchema(("text",), label_keys=keys)
        assert schema.label_shape == shape
        assert document(record, schema).labels == (5,)
    assert DocumentSchema(("text",)).label_shape is None


def test_a_text_has_the_same_hash_on_every_machine() -> None:
    assert hash_text("abc") == 0xBA7816BF8F01CFEA  # the first bytes of the SHA-256 of FIPS 180-2's first example


def test_several_labels_keep_the_order_of_their_keys() -> None:
    schema = DocumentSchema(("text",), label_keys=("scores.b", "a"))
    assert schema.label_shape == (2,)
    assert document({"text": "a", "a": 1, "scores": {"b": 2}}, schema).labels == (2, 1)


@pytest.mark.parametrize(
    ("label", "dtype", "reason", "detail"),
    [
        (b"null", "float32", "missing_label", '"y" is null'),
        (b'"3"', "float32", "bad_label", '"y" is a string, not a finite number'),
        (b"[3]", "float32", "bad_label", '"y" is an array, not a finite number'),
        (b"true", "float32", "bad_label", '"y" is a boolean, not a finite number'),
        (b"1e39", "float32", "bad_label", '"y" is 1e+39, which label_dtype float32 cannot hold'),
        (b"128", "int8", "bad_label", '"y" is 128, which label_dtype int8 cannot hold'),
        (b"-129", "int8", "bad_label", '"y" is -129, which label_dtype int8 cannot hold'),
        (b"2.5", "int16", "bad_label", '"y" is 2.5, which label_dtype int16 cannot hold'),
        (b"9223372036854775808", "int64", "bad_label", "label_dtype int64 cannot hold"),
        (b"9223372036854775807.0", "int64", "bad_label", "label_dtype int64 cannot hold"),
        (b"1" + b"0" * 400, "float64", "not_json", "infinity"),
    ],
)
def test_a_label_that_is_no_number_of_its_dtype_is_rejected(label: bytes, dtype: str, reason: str, detail: str) -> None:
    schema = DocumentSchema(("text",), label_keys=("y",), label_dtype=dtype)
    rejected = rejection(b'{"text": "a", "y": ' + label + b"}", schema)
    assert rejected.reason == reason
    assert detail in rejected.detail


@pytest.mark.parametrize(
    ("label", "dtype"),
    [
        (3, "float32"),
        (-0.0, "float32"),
        (1e39, "float64"),
        (3.4028234663852886e38, "float32"),
        (127, "int8"),
        (-128, "int8"),
        (3.0, "int8"),
        (2**63 - 1, "int64"),
    ],
)
def test_a_label_of_its_dtype_is_kept(label: float, dtype: str) -> None:
    schema = DocumentSchema(("text",), label_keys=("y",), label_dtype=dtype)
    (kept,) = document({"text": "a", "y": label}, schema).labels
    assert kept == label
    assert math.copysign(1, kept) == math.copysign(1, label)


def test_a_missing_label_is_rejected() -> None:
    rejected = rejection({"text": "a"}, DocumentSchema(("text",), label_keys=("scores.y",)))
    assert (rejected.reason, rejected.detail) == ("missing_label", '"scores.y" is missing')


def test_labels_are_not_read_unless_asked_for() -> None:
    assert document({"text": "a", "label": "not a number"}).labels == ()


def test_a_huge_integer_is_exact() -> None:
    assert parse_record(b'{"n": 123456789012345678901234567890}') == {"n": 123456789012345678901234567890}


def test_a_bad_record_error_says_reason_and_detail() -> None:
    with pytest.raises(BadRecordError, match="not_an_object: the line is an array, not an object"):
        parse_record(b"[]")
