import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from mlfilter_core.annotating.annotated_format import SUFFIXES, Compression, compressed, write_records
from mlfilter_core.files.zstd import zstd

RECORDS: list[dict[str, Any]] = [
    {"id": "ä", "text": "a\nb", "score_x": 0.25},
    {"id": None, "z": [1], "a": {"b": 2}},
]
DECOMPRESS = {None: bytes, "gzip": gzip.decompress, "zstd": zstd.decompress}


@pytest.mark.parametrize("compression", SUFFIXES)
def test_each_record_is_one_line_with_its_keys_in_order(tmp_path: Path, compression: Compression) -> None:
    path = tmp_path / "x"
    with path.open("wb") as on_disk, compressed(on_disk, compression) as file:
        write_records(file, [RECORDS[0]])
        write_records(file, [])
        write_records(file, [RECORDS[1]])
    lines = DECOMPRESS[compression](path.read_bytes()).split(b"\n")
    assert lines.pop() == b""
    assert [list(json.loads(line).items()) for line in lines] == [list(record.items()) for record in RECORDS]


@pytest.mark.parametrize("compression", SUFFIXES)
def test_no_records_make_an_empty_file(tmp_path: Path, compression: Compression) -> None:
    with (tmp_path / "x").open("wb") as on_disk, compressed(on_disk, compression):
        pass
    assert DECOMPRESS[compression]((tmp_path / "x").read_bytes()) == b""


@pytest.mark.parametrize("compression", SUFFIXES)
def test_the_bytes_do_not_depend_on_the_temporary_name(tmp_path: Path, compression: Compression) -> None:
    for name in ("first", "second"):
        with (tmp_path / name).open("wb") as on_disk, compressed(on_disk, compression) as file:
            write_records(file, RECORDS)
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()
