"""JSON records, or rows of another Parquet file with further columns, to a Parquet file."""

from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from mlfilter_core.corpus import exact_json
from mlfilter_core.corpus.records import Record

if TYPE_CHECKING:
    import pyarrow as pa

ROW_GROUP_ROWS = 4096  # some MB of texts of some KB each. Arbitrary.
INT64 = range(-(2**63), 2**63)
EXACT_IN_FLOATS = range(-(2**53), 2**53 + 1)


def write_rows(
    target: Path | IO[bytes],
    batches: Iterable["pa.RecordBatch"],
    schema: "pa.Schema",
    added: Iterable[Record],
    kinds: dict[str, str],
) -> None:
    """Writes rows with their columns as they are and further ones behind them, compressed with zstd.

    Args:
        target: The file, or its path.
        batches: The rows.
        schema: Their columns. Its metadata, which describes the columns of another file, is left out.
        added: Values of the further columns, a record for each row.
        kinds: Kind of each further column, from `kinds_of`.
    """
    import pyarrow as pa
    from pyarrow import parquet

    further = _schema(kinds)
    whole = pa.schema([*schema, *further])
    records = iter(added)
    with parquet.ParquetWriter(target, whole, compression="zstd") as writer:
        part: list[pa.RecordBatch] = []
        for batch in batches:
            arrays = _arrays(list(islice(records, batch.num_rows)), kinds, further)
            part.append(pa.RecordBatch.from_arrays([*batch.columns, *arrays], schema=whole))
            if sum(each.num_rows for each in part) >= ROW_GROUP_ROWS:
                writer.write_table(pa.Table.from_batches(part, whole))
                part = []
        if part:
            writer.write_table(pa.Table.from_batches(part, whole))


def write_parquet(
    target: Path | IO[bytes], records: Iterable[Record], kinds: dict[str, str], row_group_rows: int = ROW_GROUP_ROWS
) -> None:
    """Writes records, compressed with zstd.

    Args:
        target: The file, or its path.
        records: The rows. A value that is missing is null.
        kinds: Kind of each column, from `kinds_of`.
        row_group_rows: Rows of a row group.
    """
    import pyarrow as pa
    from pyarrow import parquet

    schema = _schema(kinds)
    with parquet.ParquetWriter(target, schema, compression="zstd") as writer:
        rows = iter(records)
        while part := list(islice(rows, row_group_rows)):
            writer.write_table(pa.Table.from_arrays(_arrays(part, kinds, schema), schema=schema))


def kinds_of(records: Iterable[Record]) -> dict[str, str]:
    """Returns the kind of each column, in order of first appearance.

    `bool`; `int` and `long`, both 64 bits, where a double represents every value of the former exactly; `float`;
    `string`; `null` for a column without values, written as strings; `json` for nested values and for values of
    different kinds, written as strings of JSON.
    """
    kinds: dict[str, str] = {}
    for record in records:
        for name, value in record.items():
            kinds[name] = _joined(kinds.get(name, "null"), _kind(value))
    return kinds


def _kind(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "bool"
        case int():
            return "int" if value in EXACT_IN_FLOATS else "long" if value in INT64 else "json"
        case float():
            return "float"
        case str():
            return "string"
    return "json"


def _joined(one: str, other: str) -> str:
    if one == other or other == "null":
        return one
    if one == "null":
        return other
    numbers = {one, other}
    return "float" if numbers == {"int", "float"} else "long" if numbers == {"int", "long"} else "json"


def _schema(kinds: dict[str, str]) -> "pa.Schema":
    import pyarrow as pa

    types = {"bool": pa.bool_(), "int": pa.int64(), "long": pa.int64(), "float": pa.float64()}
    return pa.schema([(name, types.get(kind, pa.string())) for name, kind in kinds.items()])


def _arrays(records: list[Record], kinds: dict[str, str], schema: "pa.Schema") -> list["pa.Array"]:
    import pyarrow as pa

    return [pa.array(_column(records, name, kind), schema.field(name).type) for name, kind in kinds.items()]


def _column(records: list[Record], name: str, kind: str) -> list[Any]:
    values = [record.get(name) for record in records]
    if kind == "json":
        return [None if value is None else exact_json.dumps(value).decode() for value in values]
    return values
