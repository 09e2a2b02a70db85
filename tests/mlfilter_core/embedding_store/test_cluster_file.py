"""The file of clusters."""

import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from mlfilter_core.embedding_store.cluster_file import ROW_GROUP, ClusterFile, write_clusters
from mlfilter_core.errors import ClusterFileError

MADE = {"embeddings": {}, "request": {"group": "train"}, "documents": 0, "no_direction": 0, "sizes": {"0": [9, 9, 1.0]}}


def write(path: Path, n_rows: int, n_together: int = 8192) -> None:
    starts = range(0, n_rows, n_together)
    sizes = [min(n_together, n_rows - start) for start in starts]
    rows = (([f"id-{i}" for i in range(n)], np.zeros(n, np.int32), np.ones(n, np.float32)) for n in sizes)
    write_clusters(path, rows, {**MADE, "documents": n_rows}, has_ids=True)


def test_row_groups_are_large(tmp_path: Path) -> None:
    write(tmp_path / "x.parquet", 300_000)
    metadata = pq.ParquetFile(tmp_path / "x.parquet").metadata
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [
        ROW_GROUP,
        ROW_GROUP,
        300_000 - 2 * ROW_GROUP,
    ]
    with ClusterFile(tmp_path / "x.parquet") as clusters:
        assert len(clusters.read()[0]) == 300_000


def test_a_changed_byte_of_the_footer_is_no_error_of_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    write(path, 60)
    content = path.read_bytes()
    footer = int.from_bytes(content[-8:-4], "little")
    n_refused = 0
    for place in range(len(content) - footer - 8, len(content)):
        for change in (1, 0x80, 0xFF):
            path.write_bytes(content[:place] + bytes([content[place] ^ change]) + content[place + 1 :])
            try:
                with ClusterFile(path) as clusters:
                    clusters.read()
                    clusters.ids()
            except ClusterFileError as error:
                assert str(error).startswith(f"{path}: ")
                n_refused += 1
    assert n_refused


@pytest.mark.parametrize("wrong", [b"[]", b"3", b"{}", b"\xff", b'{"sizes": []}'])
def test_other_metadata_are_refused(tmp_path: Path, wrong: bytes) -> None:
    path = tmp_path / "x.parquet"
    write(path, 60)
    table = pq.read_table(path)
    with pq.ParquetWriter(path, table.schema) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({b"mlfilter_clusters": wrong})
    with pytest.raises(ClusterFileError, match="not a file of clusters"):
        ClusterFile(path)


def test_a_refused_file_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    write(path, 60)
    table = pq.read_table(path)
    pq.write_table(table, path)
    for _ in range(3):
        with pytest.raises(ClusterFileError):
            ClusterFile(path)
    opened = {os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")}  # noqa: PTH208
    assert str(path) not in opened
