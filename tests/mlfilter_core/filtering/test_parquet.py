from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from mlfilter_core.filtering import parquet as parquet_module
from mlfilter_core.filtering.parquet import kinds_of, write_parquet

RECORDS: list[dict[str, Any]] = [
    {"a": "x", "b": 1, "c": True, "d": None, "e": {"k": [1]}},
    {"a": None, "b": 2.5, "c": False, "f": 3, "g": "s"},
    {"b": 3, "f": 2**63, "g": 1, "h": 2**40},
]


def test_columns_have_the_kind_of_their_values() -> None:
    assert kinds_of(RECORDS) == {
        **{"a": "string", "b": "float", "c": "bool", "d": "null", "e": "json", "f": "json", "g": "json", "h": "int"}
    }


def test_records_are_written_with_all_their_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_module, "ROWS", 2)
    write_parquet(tmp_path / "x.parquet", RECORDS, kinds_of(RECORDS))
    file = pyarrow.parquet.ParquetFile(tmp_path / "x.parquet")
    assert file.metadata.num_row_groups == 2
    assert file.read().to_pylist() == [
        {"a": "x", "b": 1.0, "c": True, "d": None, "e": '{"k":[1]}', "f": None, "g": None, "h": None},
        {"a": None, "b": 2.5, "c": False, "d": None, "e": None, "f": "3", "g": '"s"', "h": None},
        {"a": None, "b": 3.0, "c": None, "d": None, "e": None, "f": str(2**63), "g": "1", "h": 2**40},
    ]


def test_no_records_are_a_file_without_rows(tmp_path: Path) -> None:
    write_parquet(tmp_path / "x.parquet", [], kinds_of([]))
    assert pyarrow.parquet.read_table(tmp_path / "x.parquet").num_rows == 0
