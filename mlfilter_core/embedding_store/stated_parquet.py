"""Parquet files that state, as a JSON object in their metadata, what they were made from."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlfilter_core.errors import in_one_line


@contextmanager
def reading(failure: str, make_error: Callable[[str], Exception]) -> Iterator[None]:
    """Turns the errors of a broken file into one that says so; errors of the file system stay as they are.

    Args:
        failure: What cannot be read, for the message.
        make_error: Returns the error, given its message.
    """
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, LookupError, ValueError, TypeError, OSError) as error:
        if isinstance(error, OSError) and error.errno:  # of the file system, not of Parquet
            raise
        raise make_error(f"{failure} ({in_one_line(error)})") from error


def open_stated(path: Path, key: bytes, required: Mapping[str, type]) -> tuple[Any, dict[str, Any]]:
    """Returns an open `pyarrow.parquet.ParquetFile`, and what it states.

    Args:
        path: The file.
        key: Key of the JSON object in its metadata.
        required: Types of the values that the object must have, by name.

    Raises:
        LookupError, ValueError, TypeError, pyarrow.ArrowException, OSError: It is not such a file, or cannot be read.
    """
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path)
    try:
        made = dict(json.loads((file.metadata.metadata or {})[key]))
        if wrong := [name for name, kind in required.items() if not isinstance(made.get(name), kind)]:
            raise ValueError(f"it does not state {', '.join(wrong)}")
    except BaseException:
        file.close()
        raise
    return file, made
