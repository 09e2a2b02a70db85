"""The values of source records, read and compared in another way than jobs read and copy them.

Python's json keeps what orjson loses: the digits of numbers, and keys that occur twice. Knows nothing about files.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from mlfilter_core.corpus.documents import DEFAULT_ID_KEYS, Document, DocumentSchema
from mlfilter_core.corpus.source_text import UTF8_BOM
from mlfilter_core.embedding_store.source_documents import WHOLE_DOCUMENT


class Number(str):
    """A number with its digits, which equals no string."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Number) and str(self) == str(other)

    __hash__ = str.__hash__


class Pairs(tuple[tuple[str, Any], ...]):
    """The keys and values of an object, in order, with keys that occur twice."""

    __slots__ = ()


def read_exactly(content: bytes) -> Any:
    """Returns a JSON value with objects as `Pairs` and numbers as `Number`.

    Raises:
        ValueError: It is not JSON.
        RecursionError: It is nested some hundred levels deep.
    """
    return json.loads(content.removeprefix(UTF8_BOM), parse_float=Number, parse_int=Number, object_pairs_hook=Pairs)


def find_exactly(record: Pairs, key: str) -> Any:
    """Returns the value at a key or dotted path, which the key precedes; of a key that occurs twice, the last.

    Raises:
        KeyError: There is none.
    """
    found = dict(record)
    if key in found:
        return found[key]
    value: Any = record
    for part in key.split("."):
        if not isinstance(value, Pairs):
            raise KeyError(key)
        value = dict(value)[part]
    return value


def read_again(document: Document, content: bytes, schema: DocumentSchema) -> Document:
    """Returns a document of a line with its id, text and index values read exactly."""
    try:
        record = read_exactly(content)
    except RecursionError:  # orjson reads deeper
        return document
    has_id = (key for key in DEFAULT_ID_KEYS if dict(record).get(key) not in (None, ""))
    id_key = schema.id_key or next(has_id, None)
    return replace(
        document,
        id=document.id if id_key is None else _stored(find_exactly(record, id_key)),
        text="\n".join(find_exactly(record, key) for key in schema.text_keys),
        index=tuple(_stored(find_exactly(record, key)) for key in schema.index_keys),
    )


def wrong_copies(line: Pairs, source: Pairs, keys: Sequence[str]) -> list[str]:
    """Returns the output keys whose values in an annotated line are not those of the source record.

    Args:
        line: The annotated line.
        source: The source record.
        keys: Output keys that come from the source; `*` is the whole record.
    """
    values = dict(line)
    wrong = []
    for key in keys:
        if key == WHOLE_DOCUMENT:
            is_copied = any(line[i : i + len(source)] == source for i in range(len(line) - len(source) + 1))
        else:
            is_copied = key in values and values[key] == _found(source, key)
        wrong += [] if is_copied else [key]
    return wrong


def _found(record: Pairs, key: str) -> Any:
    try:
        return find_exactly(record, key)
    except KeyError:
        return None


def _stored(value: Any) -> str:
    """Returns a value as the HDF5 file stores it: a string as it is, any other as JSON without white space."""
    return str(value) if type(value) is str else _as_json(value)


def _as_json(value: Any) -> str:
    match value:
        case Number():
            return str(value)
        case Pairs():
            return "{" + ",".join(f"{_as_json(key)}:{_as_json(item)}" for key, item in value) + "}"
        case list():
            return "[" + ",".join(map(_as_json, value)) + "]"
    return json.dumps(value, ensure_ascii=False)
