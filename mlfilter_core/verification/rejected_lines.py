"""Reads the lines of a rejects file, which `mlfilter_core.corpus.rejects` writes."""

import base64
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import orjson

from mlfilter_core.corpus.lines import OverlongLine, SourceReader
from mlfilter_core.errors import SourceError

WHOLE_BYTES = 1 << 20  # longer lines with raw_base64 are decoded in pieces; arbitrary
RAW_BASE64 = b',"raw_base64":"'  # cannot occur before: quotation marks in values have backslashes


@dataclass(frozen=True, slots=True)
class RejectedLine:
    """One rejected line of a source.

    Attributes:
        line: 1-based line of the source.
        offset: Byte offset of that line in the decompressed source.
        reason: Name of the reason.
        pieces: Bytes of the line without the line feed, to be read before the next line.
    """

    line: int
    offset: int
    reason: str
    pieces: Iterator[bytes]


def read_rejected_lines(reader: SourceReader) -> Iterator[RejectedLine]:
    """Yields the rejected lines in the order of the file.

    Overlong lines are never in memory as a whole.

    Args:
        reader: The rejects file.

    Raises:
        SourceError: A line has another format; also while its `pieces` are read.
    """
    for line in reader.lines(WHOLE_BYTES):
        where = f"{reader.path}:{line.number}"
        try:
            if isinstance(line, OverlongLine):
                rejected = _from_pieces(line.pieces, where)
            else:
                rejected = _from_record(orjson.loads(line.content))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise _broken(where, error) from error
        yield rejected


def _from_record(record: Any) -> RejectedLine:
    raw = record["raw"].encode() if "raw" in record else base64.b64decode(record["raw_base64"], validate=True)
    return RejectedLine(record["line"], record["offset"], record["reason"], iter([raw]))


def _from_pieces(pieces: Iterator[bytes], where: str) -> RejectedLine:
    head = b""
    for piece in pieces:
        head += piece
        facts, found, raw = head.partition(RAW_BASE64)
        if found:
            record = orjson.loads(facts + b"}")
            decoded = _decoded(chain([raw], pieces), where)
            return RejectedLine(record["line"], record["offset"], record["reason"], decoded)
    return _from_record(orjson.loads(head))  # the embedding run had it in memory, too


def _decoded(pieces: Iterator[bytes], where: str) -> Iterator[bytes]:
    unread = b""
    for piece in pieces:
        unread += piece
        whole = len(unread) // 4 * 4  # four characters stand for three bytes, up to the "} at the end
        try:
            yield base64.b64decode(unread[:whole], validate=True)
        except ValueError as error:
            raise _broken(where, error) from error
        unread = unread[whole:]
    if unread != b'"}':
        raise _broken(where, 'it does not end with "}')


def _broken(where: str, why: object) -> SourceError:
    return SourceError(f"{where}: no line of a file of rejected lines ({why}); embed the source again")
