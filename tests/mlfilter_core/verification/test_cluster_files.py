import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mlfilter_core.verification import cluster_files
from mlfilter_core.verification.output_kinds import VerifyRequest
from mlfilter_core.verification.verify import verify
from tests.mlfilter_core.clustering.topics import cluster_job, run_steps, write_topics

Columns = dict[str, Any]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    write_topics(tmp_path / "out/embeddings/x.h5", np.arange(60) % 3)
    run_steps(cluster_job(tmp_path))
    return tmp_path / "out"


def problems(out: Path, read_content: bool = True) -> tuple[str, ...]:
    wrong = verify(VerifyRequest(out, read_content=read_content), n_workers=1).wrong
    return tuple(problem for each in wrong for problem in each.problems if each.path.startswith("clusters/"))


def test_a_folder_of_clusters_is_right(out: Path) -> None:
    assert problems(out) == problems(out, read_content=False) == ()
    assert "1 files of clusters" in verify(VerifyRequest(out), n_workers=1).summary()


def swapped(columns: Columns) -> None:
    columns["cluster"][[0, 1]] = columns["cluster"][[1, 0]]


def moved(columns: Columns) -> None:
    columns["cluster"][:] = (columns["cluster"] + 1) % 3


def farther(columns: Columns) -> None:
    columns["cluster_distance"][5] += 0.01


def in_none(columns: Columns) -> None:
    columns["cluster"][5] = -1


def of_others(columns: Columns) -> None:
    columns["document_id"] = columns["document_id"][::-1]


def fewer(columns: Columns) -> None:
    for name in columns:
        columns[name] = columns[name][:-1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (swapped, "row 0 has another nearest centre, or another distance from it; cluster again (1 more like it)"),
        (moved, "row 0 has another nearest centre, or another distance from it; cluster again (59 more like it)"),
        (farther, "row 5 has another nearest centre, or another distance from it; cluster again"),
        (in_none, "rows 0 to 59 have a cluster that does not exist; cluster again"),
        (of_others, "rows 0 to 59 have the ids of other documents; cluster again"),
        (fewer, "it has 59 rows and states 60; cluster again"),
    ],
)
def test_a_changed_file_is_found(out: Path, change: Callable[[Columns], None], message: str) -> None:
    path = out / "clusters/x.parquet"
    table = pq.read_table(path)
    columns = {name: np.array(table[name].to_pylist()) for name in table.column_names}
    change(columns)
    arrays = [pa.array(columns[name].tolist(), table.schema.field(name).type) for name in columns]
    metadata = pq.ParquetFile(path).metadata.metadata
    with pq.ParquetWriter(path, table.schema) as writer:
        writer.write_batch(pa.record_batch(arrays, schema=table.schema))
        writer.add_key_value_metadata({b"mlfilter_clusters": metadata[b"mlfilter_clusters"]})
    assert message in problems(out)


def test_whole_numbers_are_ids(tmp_path: Path) -> None:
    path = tmp_path / "out/embeddings/x.h5"
    write_topics(path, np.arange(60) % 3)
    with h5py.File(path, "r+") as file:
        del file["train/document_id"]
        file["train/document_id"] = np.arange(60)
    run_steps(cluster_job(tmp_path))
    assert problems(tmp_path / "out") == ()


def with_sizes(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Changes what a file states about its clusters."""
    table, metadata = pq.read_table(path), pq.ParquetFile(path).metadata.metadata
    made = json.loads(metadata[b"mlfilter_clusters"])
    change(made["sizes"])
    with pq.ParquetWriter(path, table.schema) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({b"mlfilter_clusters": json.dumps(made).encode()})


def test_a_stated_cluster_without_rows_is_found(out: Path) -> None:
    with_sizes(out / "clusters/x.parquet", lambda sizes: sizes.update({"99": [0, 5, 0.0]}))
    assert problems(out) == (
        "its clusters have other sizes than it states; cluster again",
        "its clusters have other numbers of tokens than it states; cluster again",
    )


def test_distances_of_many_clusters_are_checked_in_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = np.random.default_rng(0)
    directions = numbers.standard_normal((4096, 8))
    centres = numbers.standard_normal((30_000, 8)).astype(np.float32)
    monkeypatch.setattr(cluster_files, "BLOCK_BYTES", 1 << 20)
    tracemalloc.start()
    highest = cluster_files.highest_cosines(directions, centres)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 << 20
    for row in range(0, 4096, 1000):
        assert np.isclose(highest[row], (centres.astype(np.float64) @ directions[row]).max())


def test_a_missing_file_is_found(out: Path) -> None:
    write_topics(out / "embeddings/y.h5", np.arange(60) % 3)
    assert not verify(VerifyRequest(out), n_workers=1).is_right


def test_other_embeddings_are_found(out: Path) -> None:
    write_topics(out / "embeddings/x.h5", np.arange(60) % 2)
    (problem,) = problems(out)
    assert problem.startswith("was made from another version of ")
