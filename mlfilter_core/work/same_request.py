"""Whether a finished output was made by the request at hand."""

import json
from collections.abc import Collection, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from mlfilter_core.embedding_store.reader import EmbeddingFile
from mlfilter_core.errors import OtherRequestError, OutputConflictError
from mlfilter_core.wording import shown


def replace_or_move(field: str) -> str:
    """Returns how to resolve a conflict with an existing output, for the end of a message.

    Args:
        field: Job field that can name another folder for the output.
    """
    return f"use another {field}, or set params.overwrite: true to replace it"


REPLACE = replace_or_move("output_dir")
MAX_NAMED = 40  # fields in a message; arbitrary


def check_same_request(
    output: Path | str,
    made: Mapping[str, Any],
    asked: Mapping[str, Any],
    *,
    ignored: Collection[str] = (),
    field: str = "output_dir",
) -> None:
    """Checks that a finished output was made by this request.

    Args:
        output: The output, or its URL.
        made: Provenance of the request that made it, as read from a file.
        asked: Provenance of this request.
        ignored: Fields that may differ.
        field: Job field that can name another folder for the output, for the message.

    Raises:
        OtherRequestError: Another request made it; names each field that differs, with both values.
    """
    differing = differing_fields(made, asked, ignored)
    if differing:
        raise OtherRequestError(
            f"{output} was made by another request: {differing}; {replace_or_move(field)}, or keep its settings"
        )


def are_same_embeddings(
    output: Path, path: Path, group: str, recorded: Mapping[str, Any], read_content: bool
) -> bool | None:
    """Returns whether a finished output was made from the present version of a file of embeddings.

    Args:
        output: The output, for the message.
        path: The file of embeddings.
        group: Name of its HDF5 group.
        recorded: Identity of the file that the output was made from.
        read_content: Whether to read a file of another tool whose modification time differs.

    Returns:
        True, or None where only the content decides and `read_content` is false.

    Raises:
        OutputConflictError: It was made from another version.
    """
    with EmbeddingFile(path, group) as embeddings:
        are_same = embeddings.is_version(recorded, read_content)
    if are_same is False:
        raise OutputConflictError(f"{output} was made from another version of {path}; {REPLACE}")
    return are_same


def differing_fields(made: Mapping[str, Any], asked: Mapping[str, Any], ignored: Collection[str] = ()) -> str:
    """Returns the fields in which two requests differ, nested ones by dotted names; empty where there are none.

    A field that is missing is None. Of very many fields, such as the limits of groups, the first are named.

    Example: `max_length: 512 in the file, 256 asked for; heads.quality: None in the file, 5fdfd0de0f39 asked for`.
    """
    read_back = json.loads(json.dumps(asked))  # with lists for tuples, as in a file
    differing = (
        f"{name}: {shown(before)} in the file, {shown(now)} asked for"
        for name, before, now in _differences(made, read_back)
        if name not in ignored
    )
    named = list(islice(differing, MAX_NAMED))
    if n_more := sum(1 for _ in differing):
        named.append(f"and {n_more:,} more")
    return "; ".join(named)


def _differences(made: Any, asked: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(made, Mapping) and isinstance(asked, Mapping):
        for key in {**asked, **made}:
            inner = f"{name}.{key}" if name and key else f"{name}{key}"
            yield from _differences(made.get(key), asked.get(key), inner)
    elif made != asked:
        yield name, made, asked
