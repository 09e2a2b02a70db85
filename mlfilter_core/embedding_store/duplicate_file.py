"""The file with the duplicates of a file of embeddings, as Parquet: a row for each document.

The metadata of the file has a JSON object that says what it was made from.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlfilter_core.embedding_store.stated_parquet import open_stated, reading
from mlfilter_core.errors import DuplicateFileError
from mlfilter_core.files.new_file import open_new

SUFFIX = ".parquet"
DUPLICATE_OF, KEPT_FILE, KEPT_ROW = "duplicate_of", "duplicate_of_file", "duplicate_of_row"
NEAR_FILE, NEAR_ROW, COSINE = "near_file", "near_row", "cosine"
METADATA = b"mlfilter_duplicates"
_REQUIRED = {"embeddings": dict, "request": dict, "documents": int, "kept": int, "tokens": int, "kept_tokens": int}
ROW_GROUP = 1 << 17  # rows of a row group


def number_of(identity: Mapping[str, Any]) -> int:
    """Returns a number of 64 bits for the version of a file of embeddings, whose `identity` is given.

    A copy of a file of another tool has another modification time, but the same number.
    """
    content = json.dumps({name: value for name, value in identity.items() if name != "mtime_ns"}, sort_keys=True)
    return int.from_bytes(hashlib.blake2b(content.encode(), digest_size=8).digest(), "little")


def open_duplicates(path: Path) -> tuple[Any, dict[str, Any]]:
    """Returns an open file of duplicates, and what it was made from; errors as for `open_stated`."""
    return open_stated(path, METADATA, _REQUIRED)


def made_from(path: Path) -> Mapping[str, Any]:
    """Returns what a file of duplicates was made from: `embeddings`, `request`, `documents`, `kept`, ...

    Raises:
        DuplicateFileError: It is not a file of duplicates, or is damaged.
        FileNotFoundError: It is missing.
    """
    with reading("not a file of duplicates", lambda what: DuplicateFileError(f"{path}: {what}; deduplicate again")):
        file, made = open_duplicates(path)
        file.close()
        return made


def write_duplicates(path: Path, table: Any, made: Mapping[str, Any]) -> None:
    """Writes a new file; an existing one is replaced.

    Args:
        path: The file.
        table: Table of Arrow with a row for each document.
        made: What the file was made from.

    Raises:
        OSError: Writing failed.
    """
    import pyarrow.parquet as pq

    table = table.replace_schema_metadata({METADATA: json.dumps(made, sort_keys=True).encode()})
    with open_new(path) as sink:
        pq.write_table(table, sink, compression="zstd", row_group_size=ROW_GROUP)
