"""Which columns of a Parquet file have the values of the wanted keys.

Knows nothing about rows.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mlfilter_core.corpus.documents import RecordKeys
from mlfilter_core.errors import SourceError

if TYPE_CHECKING:
    import pyarrow as pa

N_SHOWN_COLUMNS = 20


def wanted_columns(
    path: Path, schema: "pa.Schema", keys: RecordKeys | None, others: Sequence[str] = ()
) -> list[str] | None:
    """Returns the columns to read, as dotted paths; None for all.

    Args:
        path: The file, for messages.
        schema: Its columns.
        keys: Wanted keys, which may be dotted paths into structs and maps; None for all.
        others: Keys that have their values from elsewhere.

    Raises:
        SourceError: A required key has no column, or a name to read is there twice.
    """
    if keys is None:
        _check_unique(path, list(schema), "")
        return None
    found = {key: _column_of(schema, key) for key in (*keys.required, *keys.optional) if key not in others}
    missing = [key for key in keys.required if key not in others and found[key] is None]
    if missing:
        names = [*schema.names, *others]
        shown = ", ".join(names[:N_SHOWN_COLUMNS]) + (", ..." if len(names) > N_SHOWN_COLUMNS else "")
        raise SourceError(
            f'{path} has no column "{missing[0]}"; it has: {shown or "none"}; correct the key, or leave the file out '
            "of glob_pattern"
        )
    columns = list(dict.fromkeys(column for column in found.values() if column is not None))
    roots = {*columns, *(column.split(".")[0] for column in columns)}
    _check_unique(path, [field for field in schema if field.name in roots], "")
    return columns


def _column_of(schema: "pa.Schema", key: str) -> str | None:
    """Returns the path of the column with the values of a key; a name that contains dots precedes a path."""
    import pyarrow as pa

    if key in schema.names:
        return key
    root, *parts = key.split(".")
    if schema.names.count(root) != 1:
        return root if root in schema.names else None
    path, kind = root, schema.field(root).type
    for part in parts:
        if pa.types.is_map(kind):  # its keys differ from row to row
            return path
        if not pa.types.is_struct(kind) or kind.get_field_index(part) < 0:
            return None
        path, kind = f"{path}.{part}", kind.field(part).type
    return path


def _check_unique(path: Path, fields: Sequence["pa.Field"], prefix: str) -> None:
    """Refuses two columns of one name: a record has one value for a key."""
    import pyarrow as pa

    names = [field.name for field in fields]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise SourceError(f'{path} has {names.count(twice)} columns "{prefix}{twice}"; rename all but one')
    for field in fields:
        kind = field.type
        while hasattr(kind, "value_type") and pa.types.is_nested(kind):  # a list
            kind = kind.value_type
        if pa.types.is_struct(kind):
            _check_unique(path, list(kind), f"{prefix}{field.name}.")
