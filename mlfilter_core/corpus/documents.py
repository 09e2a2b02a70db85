"""One JSON line to a document, or to a rejection with its reason.

Knows nothing about files.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from mlfilter_core.corpus import exact_json
from mlfilter_core.corpus.lines import Line
from mlfilter_core.corpus.source_text import UTF8_BOM, SourceRecord, without_spaces

DEFAULT_ID_KEYS = ("document_id", "doc_id", "id", "uuid", "warc_record_id")
DEFAULT_LABEL_KEYS = ("label", "score", "scores.score")
MISSING_LABEL = "missing_label"  # reason of a rejected line


@dataclass(frozen=True)
class RecordKeys:
    """The keys to read of each record; a format in columns leaves the others unread.

    Attributes:
        required: Keys that each record must have.
        optional: Keys that a record may have.
    """

    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()


@dataclass(frozen=True)
class DocumentSchema:
    """The keys of a record's text, id, index values and labels. Keys may be dotted paths: `scores.score`.

    Attributes:
        text_keys: Keys of the text; several values are joined by line feeds.
        id_key: Key of the document's id; None takes the first of `DEFAULT_ID_KEYS` that the record has.
        index_keys: Keys of the values to store beside the embedding.
        label_keys: Key of the label, or keys of several labels, one column each; None takes the first of
            `DEFAULT_LABEL_KEYS` that the record has; empty reads no labels.
        label_dtype: NumPy name of the labels' dtype. Labels must be in its range, and whole numbers for integers.
    """

    text_keys: tuple[str, ...]
    id_key: str | None = None
    index_keys: tuple[str, ...] = ()
    label_keys: str | tuple[str, ...] | None = ()
    label_dtype: str = "float32"

    @property
    def label_shape(self) -> tuple[int, ...] | None:
        """Shape of one document's labels: () for a number, (k,) for k columns, None without labels."""
        if self.label_keys is None or isinstance(self.label_keys, str):
            return ()
        return (len(self.label_keys),) if self.label_keys else None

    @property
    def keys(self) -> RecordKeys:
        """The keys that a document is made from."""
        required, optional = [*self.text_keys, *self.index_keys], list[str]()
        if self.id_key is None:
            optional += DEFAULT_ID_KEYS
        else:
            required.append(self.id_key)
        if self.label_keys is None:
            optional += DEFAULT_LABEL_KEYS
        else:
            required += (self.label_keys,) if isinstance(self.label_keys, str) else self.label_keys
        return RecordKeys(tuple(dict.fromkeys(required)), tuple(dict.fromkeys(optional)))


@dataclass(frozen=True, slots=True)
class Document:
    """One record of a corpus.

    Attributes:
        line: 1-based line of the source file.
        offset: Byte offset of that line in the decompressed source.
        id: Id of the record, or `<relative path>:<line>`.
        text: Text to embed, without the encoder's prompt.
        index: One string for each of the schema's `index_keys`; other values as JSON, as `string_at`.
        labels: One finite number for each label key.
    """

    line: int
    offset: int
    id: str
    text: str
    index: tuple[str, ...]
    labels: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Rejection:
    """The reason why a line is not a document.

    Attributes:
        line: 1-based line of the source file.
        offset: Byte offset of that line in the decompressed source.
        reason: One of a small set of words: `not_json`, `missing_key`, ...
        detail: Exact description of the problem.
    """

    line: int
    offset: int
    reason: str
    detail: str


class BadRecordError(Exception):
    """A line is not a usable record; `reason` and `detail` as in `Rejection`."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def parse_document(line: Line, schema: DocumentSchema, source_name: str) -> Document | Rejection:
    """Returns the document of a line that is not blank, or why it is rejected.

    Args:
        line: The line, with or without a carriage return or a byte order mark.
        schema: Keys of the record's text, id, index values and labels.
        source_name: Name of the source, for the ids of documents without one: `<source_name>:<line>`.
    """
    try:
        record = parse_record(line.content, large_numbers=False)
        return Document(
            line=line.number,
            offset=line.offset,
            id=id_of(record, schema.id_key, f"{source_name}:{line.number}"),
            text=_text(record, schema.text_keys),
            index=tuple(_stored_string(_required(record, key), record, key) for key in schema.index_keys),
            labels=labels_of(record, schema),
        )
    except BadRecordError as rejected:
        return Rejection(line.number, line.offset, rejected.reason, rejected.detail)


def parse_record(content: bytes, large_numbers: bool = True) -> SourceRecord:
    """Returns the JSON object in `content`.

    Args:
        content: A line.
        large_numbers: Whether whole numbers above 64 bits are exact in the values, too; in the text all numbers are.

    Raises:
        BadRecordError: It is not UTF-8, not JSON, or not an object.
    """
    content = content.removeprefix(UTF8_BOM)
    try:
        record = exact_json.loads(content) if large_numbers else orjson.loads(content)
    except orjson.JSONDecodeError as error:
        try:
            content.decode("utf-8")
        except UnicodeDecodeError as bad_byte:
            raise BadRecordError("not_utf8", str(bad_byte)) from error
        raise BadRecordError("not_json", str(error)) from error
    if not isinstance(record, dict):
        raise BadRecordError("not_an_object", f"the line is {_json_type(record)}, not an object")
    return SourceRecord(record, content)


def find_value(record: Mapping[str, Any], key: str) -> Any:
    """Returns the value at a key or dotted path; a key that contains dots has precedence over the path.

    Example: `find_value({"scores": {"score": 3}}, "scores.score")` is 3.

    Raises:
        KeyError: There is none.
    """
    if key in record:
        return record[key]
    value: Any = record
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise KeyError(key)
        value = value[part]
    return value


def as_string(value: Any) -> str:
    """Returns a string unchanged, and any other JSON value as JSON."""
    return value if isinstance(value, str) else exact_json.dumps(value).decode()


def string_at(record: Mapping[str, Any], key: str) -> str:
    """Returns the string at a key or dotted path, or another value as JSON, with numbers as the source has them.

    Raises:
        KeyError: There is none.
        orjson.JSONEncodeError: It is nested too deep to be written as JSON.
    """
    return _string_of(find_value(record, key), record, key)


def _string_of(value: Any, record: Mapping[str, Any], key: str) -> str:
    """Returns the string at a key, given the value that was found there; as `string_at`."""
    string = as_string(value)
    if not isinstance(record, SourceRecord) or _is_exact(value, record):
        return string
    text = record.text_at(key)
    is_same = text.replace(b" ", b"") == string.encode().replace(b" ", b"")  # mostly; told at once
    return string if is_same else without_spaces(text).decode()


def copied_value(record: Mapping[str, Any], key: str) -> Any:
    """Returns the value at a key or dotted path, to be written by `exact_json.dumps` as the source has it.

    Raises:
        KeyError: There is none.
    """
    value = find_value(record, key)
    if isinstance(record, SourceRecord) and not _is_exact(value, record):
        return orjson.Fragment(record.text_at(key))
    return value


def _is_exact(value: Any, record: SourceRecord) -> bool:
    """Returns whether a value is written as it was read."""
    if isinstance(value, int):
        return value in exact_json.INT64 and (value != 0 or b"-0" not in record.text)
    return isinstance(value, str) or value is None


def id_of(record: Mapping[str, Any], id_key: str | None, default: str) -> str:
    """Returns the id of a record: the value at `id_key`, or at the first of `DEFAULT_ID_KEYS`, or `default`.

    Raises:
        BadRecordError: `id_key` is missing or empty, or the id cannot be stored.
    """
    if id_key is not None:
        value = _required(record, id_key)
        if value in (None, ""):
            raise BadRecordError("missing_key", f'"{id_key}" is empty')
        return _stored_string(value, record, id_key)
    for key in DEFAULT_ID_KEYS:
        if record.get(key) not in (None, ""):
            return _stored_string(record[key], record, key)
    return default


def labels_of(record: Mapping[str, Any], schema: DocumentSchema) -> tuple[float, ...]:
    """Returns the labels of a record, one finite number for each label key.

    Raises:
        BadRecordError: One is missing, not a number, or out of the range of the schema's dtype.
    """
    if schema.label_keys is None:
        present = next((key for key in DEFAULT_LABEL_KEYS if has_value(record, key)), None)
        if present is None:
            looked_for = " nor ".join(f'"{key}"' for key in DEFAULT_LABEL_KEYS)
            present = ", ".join(list(record)[:8]) or "nothing"
            raise BadRecordError(MISSING_LABEL, f"neither {looked_for} is present; the record has: {present}")
        return (_label(record, present, schema.label_dtype),)
    keys = (schema.label_keys,) if isinstance(schema.label_keys, str) else schema.label_keys
    return tuple(_label(record, key, schema.label_dtype) for key in keys)


def hash_text(text: str) -> int:
    """Returns a hash of 64 bits, the same on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def _required(record: Mapping[str, Any], key: str) -> Any:
    try:
        return find_value(record, key)
    except KeyError:
        present = ", ".join(list(record)[:8]) or "none"
        raise BadRecordError("missing_key", f'"{key}" is missing; the record has: {present}') from None


def _without_nul(value: str, key: str) -> str:
    if "\0" in value:  # HDF5 strings end at a NUL
        raise BadRecordError("nul_character", f'"{key}" contains a NUL character')
    return value


def _text(record: Mapping[str, Any], keys: tuple[str, ...]) -> str:
    parts = []
    for key in keys:
        value = _required(record, key)
        if not isinstance(value, str):
            raise BadRecordError("not_a_string", f'"{key}" is {_json_type(value)}, not a string')
        parts.append(_without_nul(value, key))
    text = "\n".join(parts)
    if not text or text.isspace():
        raise BadRecordError("empty_text", f"nothing to embed in {', '.join(keys)}")
    return text


def _stored_string(value: Any, record: Mapping[str, Any], key: str) -> str:
    try:
        return _without_nul(_string_of(value, record, key), key)
    except orjson.JSONEncodeError:  # orjson writes fewer levels than it reads
        raise BadRecordError("nested_too_deep", f'"{key}" is nested too deep to be stored as JSON') from None


def has_value(record: Mapping[str, Any], key: str) -> bool:
    """Returns whether `find_value` finds a value."""
    try:
        find_value(record, key)
    except KeyError:
        return False
    return True


def _label(record: Mapping[str, Any], key: str, dtype: str) -> float:
    try:
        value = find_value(record, key)
    except KeyError:
        raise BadRecordError(MISSING_LABEL, f'"{key}" is missing') from None
    if value is None:
        raise BadRecordError(MISSING_LABEL, f'"{key}" is null')
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise BadRecordError("bad_label", f'"{key}" is {_json_type(value)}, not a finite number')
    if np.issubdtype(np.dtype(dtype), np.integer):
        limits = np.iinfo(dtype)
        if value != int(value) or not limits.min <= value <= limits.max:
            raise BadRecordError("bad_label", f'"{key}" is {value}, which label_dtype {dtype} cannot hold')
    elif abs(value) > float(np.finfo(dtype).max):
        raise BadRecordError("bad_label", f'"{key}" is {value}, which label_dtype {dtype} cannot hold')
    return value


def _json_type(value: Any) -> str:
    if value is None:
        return "null"
    names = {bool: "a boolean", str: "a string", list: "an array", dict: "an object"}
    return names.get(type(value), "a number")
