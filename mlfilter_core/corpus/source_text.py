"""A JSON object of a source, with the text of its values as the source has it.

Values that are copied keep the digits of their numbers (1.0, 1e5, 0.10), the order of their keys, and keys that occur
twice, all of which a parser loses. Knows nothing about what is copied where.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import orjson

UTF8_BOM = b"\xef\xbb\xbf"
WHITE_SPACE = b" \t\r\n"  # of JSON
# In a text `_without_escapes`. Possessive quantifiers: a string of megabytes takes no memory for backtracking.
_KEY = re.compile(rb'\s*("[^"]*+")\s*:\s*')
_VALUE = re.compile(rb"\s*:\s*")
_SCALAR = re.compile(rb'[^"{\[\s,}]++')
_MARK = re.compile(rb'"[^"]*+"|[{}\[\],]')
_TOKEN = re.compile(rb'"[^"]*+"|[^\s"]++')


class SourceRecord(dict[str, Any]):
    """The values of a JSON object, by key.

    Attributes:
        text: The object as it is written, valid JSON.
    """

    __slots__ = ("text",)

    def __init__(self, values: Mapping[str, Any], text: bytes) -> None:
        super().__init__(values)
        self.text = text

    def text_at(self, key: str) -> bytes:
        """Returns the text of the value at an existing key or dotted path; of a key that occurs twice, the last."""
        path = [key] if key in self else key.split(".")
        return _only_value(self.text, path[-1]) or _value_at(self.text, path)


def without_spaces(text: bytes) -> bytes:
    """Returns the text of a JSON value without white space, and with characters instead of escapes where JSON has both.

    Example: `{"a": 1e5, "b": "\\u00e4"}` gives `{"a":1e5,"b":"ä"}`.
    """
    tokens = (text[found.start() : found.end()] for found in _TOKEN.finditer(_without_escapes(text)))
    return b"".join(orjson.dumps(orjson.loads(token)) if b"\\" in token else token for token in tokens)


def inside(text: bytes) -> bytes:
    """Returns the members of a JSON object as they are written, without its braces."""
    return text.removeprefix(UTF8_BOM).strip(WHITE_SPACE)[1:-1].strip(WHITE_SPACE)


def joined(*objects: bytes) -> bytes:
    """Returns one JSON object with the members of several, as they are written."""
    return b"{" + b",".join(members for each in objects if (members := inside(each))) + b"}"


def _only_value(text: bytes, key: str) -> bytes | None:
    """Returns the value of a key that is written once in the whole text; None where that is not certain.

    Ten times as fast as to pass over all values before it.
    """
    quoted = b'"%b"' % key.encode()
    before, _, rest = text.rpartition(quoted)  # most often behind the text of the document
    if before.endswith(b"\\") or (value := _VALUE.match(rest)) is None:
        return None
    # An ASCII character may also be written as an escape, which looks like another key.
    if not key.isascii() or not key.isidentifier() or quoted in before or b"\\u00" in text:
        return None
    rest = rest[value.end() :]
    scalar = _SCALAR.match(rest)
    return scalar[0] if scalar else rest[: _end(_without_escapes(rest), 0)].rstrip(WHITE_SPACE)


def _value_at(text: bytes, path: list[str]) -> bytes:
    for key in path:
        text = dict(_members(text))[key]
    return text


def _members(text: bytes) -> Iterator[tuple[str, bytes]]:
    """Yields the keys of a JSON object, and the texts of their values."""
    plain = _without_escapes(text)
    start = plain.index(b"{") + 1
    while (key := _KEY.match(plain, start)) is not None:
        end = _end(plain, key.end())
        yield orjson.loads(text[key.start(1) : key.end(1)]), text[key.end() : end].rstrip(WHITE_SPACE)
        start = end + 1


def _without_escapes(text: bytes) -> bytes:
    """Returns a text of the same length whose quotation marks all begin or end strings."""
    return text.replace(b"\\\\", b"__").replace(b'\\"', b"__") if b"\\" in text else text


def _end(plain: bytes, start: int) -> int:
    """Returns where a value ends that begins here, with white space behind it."""
    depth = 0
    for found in _MARK.finditer(plain, start):
        mark = found[0]
        if depth == 0 and mark in (b",", b"}", b"]"):
            return found.start()
        depth += (mark in (b"{", b"[")) - (mark in (b"}", b"]"))
    return len(plain)
