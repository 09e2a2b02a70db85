"""The JSON records of a file, one after another; for a broken line, its error.

Knows nothing about the content of records except their ids.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import orjson

from mlfilter_core.corpus.documents import DEFAULT_ID_KEYS, BadRecordError, as_string, parse_record
from mlfilter_core.corpus.lines import DEFAULT_MAX_LINE_BYTES, OverlongLine, SourceReader
from mlfilter_core.corpus.source_text import UTF8_BOM, SourceRecord
from mlfilter_core.tallies.tally import Tally

Record = dict[str, Any]
Parsed = TypeVar("Parsed")


def read_records(path: Path) -> Iterator[tuple[int, Record | BadRecordError]]:
    """Yields the number of each line that is not blank, and its record.

    Accepts NaN and Infinity, which Python's json module writes although JSON does not have them.

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
    """Yields the number of each line, and the result of `parse` for its record.

    Args:
        path: The file.
        parse: Function of a record; raises BadRecordError for an unusable one.
        bad_lines: Tally that the other lines are added to, by reason.

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
        BadRecordError: It has none, or its value cannot be written as JSON.
    """
    for key in DEFAULT_ID_KEYS:
        if record.get(key) not in (None, ""):
            try:
                as_string(record[key])
            except orjson.JSONEncodeError:  # orjson writes fewer levels than it reads
                raise BadRecordError("no_id", f'"{key}" is nested too deep to be written as JSON') from None
            return key
    present = ", ".join(list(record)[:8]) or "none"
    raise BadRecordError("no_id", f"none of {', '.join(DEFAULT_ID_KEYS)} is present; the record has: {present}")


def parse_line(content: bytes, large_numbers: bool = True) -> Record | BadRecordError:
    """Returns the record of a line, or its error; accepts NaN and Infinity as `read_records` does.

    Args:
        content: The line.
        large_numbers: As for `parse_record`.
    """
    try:
        return parse_record(content, large_numbers)
    except BadRecordError as error:
        if b"NaN" not in content and b"Infinity" not in content:
            return error
        try:
            record = json.loads(content.removeprefix(UTF8_BOM))
            orjson.dumps(record)  # it is as strict as with all others: no lone surrogates, no numbers without end
        except (ValueError, TypeError, RecursionError):
            return error
        return SourceRecord(record, content.removeprefix(UTF8_BOM)) if isinstance(record, dict) else error
