from pathlib import Path
from typing import Any

import pyarrow.parquet

from mlfilter_core.filtering.parquet import kinds_of, write_parquet

RECORDS: list[dict[str, Any]] = [
    {"a": "x", "b": 1, "c": True, "d": None, "e": {"k": [1]}},
    {"a": None, "b": 2.5, "c": False, "f": 3, "g": "s"},
    {"b": 3, "f": 2**63, "g": 1, "h": 2**40, "i": 2**60 + 1, "j": 2**60 + 1},
    {"i": 1, "j": 0.5},
]


def test_columns_have_the_kind_of_their_values() -> None:
    assert kinds_of(RECORDS) == {
        **{"a": "string", "b": "float", "c": "bool", "d": "null", "e": "json", "f": "json", "g": "json", "h": "int"},
        **{"i": "long", "j": "json"},
    }


def test_records_are_written_with_all_their_values(tmp_path: Path) -> None:
    write_parquet(tmp_path / "x.parquet", RECORDS, kinds_of(RECORDS), row_group_rows=2)
    file = pyarrow.parquet.ParquetFile(tmp_path / "x.parquet")
    assert file.metadata.num_row_groups == 2
    nothing = dict.fromkeys("abcdefghij")
    assert file.read().to_pylist() == [
        {**nothing, "a": "x", "b": 1.0, "c": True, "e": '{"k":[1]}'},
        {**nothing, "b": 2.5, "c": False, "f": "3", "g": '"s"'},
        {**nothing, "b": 3.0, "f": str(2**63), "g": "1", "h": 2**40, "i": 2**60 + 1, "j": str(2**60 + 1)},
        {**nothing, "i": 1, "j": "0.5"},
    ]
    assert str(file.schema_arrow.field("d").type) == "string"  # another file may contain values


def test_no_records_are_a_file_without_rows(tmp_path: Path) -> None:
    write_parquet(tmp_path / "x.parquet", [], kinds_of([]))
    assert pyarrow.parquet.read_table(tmp_path / "x.parquet").num_rows == 0
