"""The file with the duplicates of a file of embeddings, as Parquet: a row for each document.

The metadata of the file has a JSON object that says what it was made from.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlfilter_core.errors import DuplicateFileError, in_one_line
from mlfilter_core.files.new_file import open_new

SUFFIX = ".parquet"
DUPLICATE_OF, KEPT_FILE, KEPT_ROW = "duplicate_of", "duplicate_of_file", "duplicate_of_row"
NEAR_FILE, NEAR_ROW, COSINE = "near_file", "near_row", "cosine"
METADATA = b"mlfilter_duplicates"
_REQUIRED = ("embeddings", "request", "documents", "kept", "tokens", "kept_tokens")
ROW_GROUP = 1 << 17  # rows of a row group


def number_of(identity: Mapping[str, Any]) -> int:
    """Returns a number of 64 bits for the version of a file of embeddings, whose `identity` is given.

    A copy of a file of another tool has another modification time, but the same number.
    """
    content = json.dumps({name: value for name, value in identity.items() if name != "mtime_ns"}, sort_keys=True)
    return int.from_bytes(hashlib.blake2b(content.encode(), digest_size=8).digest(), "little")


class DuplicateFile:
    """The duplicates of a file of embeddings.

    Attributes:
        path: The file.
        made: What it was made from: `embeddings`, `request`, `documents`, `kept`, ...
    """

    def __init__(self, path: Path) -> None:
        """Opens a file and reads what it was made from.

        Raises:
            DuplicateFileError: It is not a file of duplicates, or is damaged.
            FileNotFoundError: It is missing.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.path = path
        try:
            self._file = pq.ParquetFile(path)
            self.made: Mapping[str, Any] = json.loads((self._file.metadata.metadata or {})[METADATA])
            if missing := [name for name in _REQUIRED if name not in self.made]:
                raise ValueError(f"it does not state {', '.join(missing)}")
        except (pa.ArrowException, KeyError, ValueError, TypeError, OSError) as error:
            if isinstance(error, OSError) and error.errno:  # of the file system, not of Parquet
                raise
            raise self._error(f"not a file of duplicates ({in_one_line(error)})") from error

    def __enter__(self) -> "DuplicateFile":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._file.close()

    def _error(self, message: str) -> DuplicateFileError:
        return DuplicateFileError(f"{self.path}: {message}; deduplicate again")


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
