"""Parquet files that state, as a JSON object in their metadata, what they were made from."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlfilter_core.embedding_store.reader import EmbeddingFile
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


def check_made_from(made: Mapping[str, Any], embeddings: EmbeddingFile, make_error: Callable[[str], Exception]) -> None:
    """Checks that a file was made from a file of embeddings, with a row for each document.

    Args:
        made: What it states: `embeddings`, `documents`.
        embeddings: The file of embeddings.
        make_error: Returns the error, given what is wrong with the file.
    """
    if not embeddings.is_version(made["embeddings"], read_content=True):
        raise make_error(f"was made from another version of {embeddings.path}")
    if made["documents"] != embeddings.n_rows:
        raise make_error(f"has {made['documents']} rows, and {embeddings.path} {embeddings.n_rows}")
