"""The JSON records of a file, one after another, the broken ones as what is wrong with them.

Knows nothing about what a record means, but for its id.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import orjson

from mlfilter_core.corpus.documents import DEFAULT_ID_KEYS, UTF8_BOM, BadRecordError, as_string, parse_record
from mlfilter_core.corpus.lines import DEFAULT_MAX_LINE_BYTES, OverlongLine, SourceReader
from mlfilter_core.tallies.tally import Tally

Record = dict[str, Any]
Parsed = TypeVar("Parsed")


def read_records(path: Path) -> Iterator[tuple[int, Record | BadRecordError]]:
    """Yields the number of each line that is not blank, and its record.

    NaN and Infinity, which Python's own json module writes and JSON does not know, are read as such.

    Raises:
        SourceError: The file is missing, not readable, or breaks off.
    """
    with SourceReader(path) as reader:
        for line in reader.lines(DEFAULT_MAX_LINE_BYTES):
            if isinstance(line, OverlongLine):
                yield line.number, BadRecordError("line_too_long", f"it has more than {DEFAULT_MAX_LINE_BYTES} bytes")
            elif line.content and not line.content.isspace():
                yield line.number, parse_line(line.content)


def parse_records(path: Path, parse: Callable[[Record], Parsed], bad_lines: Tally) -> Iterator[tuple[int, Parsed]]:
    """Yields the number of each line, and what `parse` makes of its record.

    Args:
        path: The file.
        parse: Raises BadRecordError for a record that is not what is asked for.
        bad_lines: Takes the lines that are no such record, by reason.

    Raises:
        SourceError: The file is missing, not readable, or breaks off.
    """
    for line, record in read_records(path):
        try:
            if isinstance(record, BadRecordError):
                raise record
            parsed = parse(record)
        except BadRecordError as error:
            bad_lines.add(error.reason, f"{path}:{line}: {error.detail}")
        else:
            yield line, parsed


def id_key(record: Record) -> str:
    """Returns the first of `DEFAULT_ID_KEYS` that a record has.

    Raises:
        BadRecordError: It has none, or one that cannot be written as JSON.
    """
    for key in DEFAULT_ID_KEYS:
        if record.get(key) not in (None, ""):
            try:
                as_string(record[key])
            except orjson.JSONEncodeError:  # it writes fewer levels than it reads
                raise BadRecordError("no_id", f'"{key}" is nested too deep to be written as JSON') from None
            return key
    present = ", ".join(list(record)[:8]) or "none"
    raise BadRecordError("no_id", f"none of {', '.join(DEFAULT_ID_KEYS)} is there; the record has: {present}")


def parse_line(content: bytes) -> Record | BadRecordError:
    """Returns the record of a line, or what is wrong with it; NaN and Infinity are read as `read_records` does."""
    try:
        return parse_record(content)
    except BadRecordError as error:
        if b"NaN" not in content and b"Infinity" not in content:
            return error
        try:
            record = json.loads(content.removeprefix(UTF8_BOM))
            orjson.dumps(record)  # it is as strict as with all others: no lone surrogates, no numbers without end
        except (ValueError, TypeError, RecursionError):
            return error
        return record if isinstance(record, dict) else error
