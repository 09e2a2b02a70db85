"""The annotated JSONL format: one line for each embedding, metadata first, then scores."""

import gzip
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, Literal, cast

import orjson

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

Compression = Literal["gzip", "zstd"] | None
SUFFIXES: dict[Compression, str] = {None: ".jsonl", "gzip": ".jsonl.gz", "zstd": ".jsonl.zst"}
# Level 6 of 9 takes twice the time of level 1 for a few per cent; scores are written and read often.
GZIP_LEVEL = 1


def open_annotations(path: Path, compression: Compression) -> IO[bytes]:
    """Opens a new annotated file for `write_records`; the caller closes it."""
    if compression == "gzip":
        return cast(IO[bytes], gzip.GzipFile(path, "wb", GZIP_LEVEL, mtime=0))
    if compression == "zstd":
        return cast(IO[bytes], zstd.open(path, "wb"))
    return open(path, "wb")


def write_records(file: IO[bytes], records: Sequence[dict[str, Any]]) -> None:
    """Writes one line for each record, keys in their order."""
    dumps, option = orjson.dumps, orjson.OPT_APPEND_NEWLINE
    file.write(b"".join([dumps(record, option=option) for record in records]))
