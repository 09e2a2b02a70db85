"""What a file is that is not a source, as far as its first bytes tell.

Knows nothing about names.
"""

import re
from dataclasses import dataclass

HEAD_BYTES = 512  # a tar archive is recognised by its bytes 257 to 262
N_SHOWN_BYTES = 12
_CONVERT = "write its records as JSON lines or Parquet"


@dataclass(frozen=True)
class ForeignFormat:
    """A format that is not read.

    Attributes:
        name: Name with its article, for messages.
        magic: Pattern of the first bytes.
        fix: What to do about it.
    """

    name: str
    magic: re.Pattern[bytes]
    fix: str = _CONVERT


_UNPACK = "unpack it"
FOREIGN_FORMATS = (
    ForeignFormat("a ZIP archive", re.compile(rb"PK(\x03\x04|\x05\x06|\x07\x08)"), _UNPACK),
    ForeignFormat("a tar archive", re.compile(rb".{257}ustar(\x00|  \x00)", re.DOTALL), _UNPACK),
    ForeignFormat("Parquet that was compressed as a whole", re.compile(rb"PAR[1E]"), "decompress it"),
    ForeignFormat("a 7z archive", re.compile(rb"7z\xbc\xaf\x27\x1c"), _UNPACK),
    ForeignFormat("compressed with LZ4", re.compile(rb"\x04\x22\x4d\x18"), "decompress it: lz4 -d"),
    ForeignFormat("compressed with Snappy", re.compile(rb"\xff\x06\x00\x00sNaPpY"), "decompress it"),
    ForeignFormat("compressed with compress", re.compile(rb"\x1f\x9d"), "decompress it: uncompress"),
    ForeignFormat("an Arrow IPC file", re.compile(rb"ARROW1\x00\x00")),
    ForeignFormat("an Arrow IPC stream", re.compile(rb"\xff\xff\xff\xff")),
    ForeignFormat("an ORC file", re.compile(rb"ORC[^\w\s]")),
    ForeignFormat("an Avro file", re.compile(rb"Obj\x01")),
    ForeignFormat("an HDF5 file", re.compile(rb"\x89HDF\r\n\x1a\n")),
    ForeignFormat("an SQLite or DuckDB database", re.compile(rb"SQLite format 3\x00|[^{].{7}DUCK", re.DOTALL)),
    ForeignFormat("a WARC file", re.compile(rb"WARC/\d"), "extract its texts, for example with trafilatura"),
    ForeignFormat("a PDF file", re.compile(rb"%PDF-"), "extract its text"),
    ForeignFormat("a web page", re.compile(rb"\s*<(!doctype html|html)", re.IGNORECASE), "download the file again"),
    ForeignFormat(
        "a pointer to a file of Git LFS", re.compile(rb"version https://git-lfs"), "download the file: git lfs pull"
    ),
    # JSON, and no JSON lines: every line would be rejected.
    ForeignFormat(
        "one JSON array of records", re.compile(rb"\s*\[[ \t]*\r?\n\s*\{"), "write a record on each line: jq -c '.[]'"
    ),
    ForeignFormat(
        "one JSON object on several lines", re.compile(rb'\s*\{[ \t]*\r?\n\s*"'), "write it on one line: jq -c ."
    ),
)


def foreign_format(head: bytes) -> ForeignFormat | None:
    """Returns the format of a file with these first `HEAD_BYTES`; None where they do not tell it."""
    head = head.removeprefix(b"\xef\xbb\xbf")
    return next((each for each in FOREIGN_FORMATS if each.magic.match(head)), None)


def describe_unknown(head: bytes) -> str:
    """Returns what a file with these first bytes is, for messages; its first bytes, where they do not tell it."""
    known = foreign_format(head)
    return known.name if known is not None else f"of no known format (it begins with {head[:N_SHOWN_BYTES]!r})"
