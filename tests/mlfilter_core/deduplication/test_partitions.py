"""Files of rows divided into buckets."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from mlfilter_core.deduplication.buckets import buckets_of
from mlfilter_core.deduplication.partitions import open_partitions, read_bucket


def test_each_bucket_has_its_rows_in_order(tmp_path: Path) -> None:
    buckets = np.array([2, 0, 2, 2, 0])
    rows, vectors = np.arange(5), np.arange(10, dtype=np.float32).reshape(5, 2)
    with open_partitions(tmp_path / "x", 4) as partitions:
        partitions.add({"row": rows, "vector": vectors}, buckets)
        partitions.add({"row": rows + 5, "vector": vectors + 10}, buckets[::-1])
    found = [[*read_bucket(tmp_path / "x", bucket, 4)] for bucket in range(4)]
    assert [[slice_["row"].tolist() for slice_ in of_bucket] for of_bucket in found] == [
        [[1, 4], [5, 8]],
        [],
        [[0, 2, 3], [6, 7, 9]],
        [],
    ]
    assert found[2][1]["vector"].tolist() == (vectors + 10)[[1, 2, 4]].tolist()


def test_a_file_without_rows_has_none(tmp_path: Path) -> None:
    with open_partitions(tmp_path / "x", 4):
        pass
    assert [*read_bucket(tmp_path / "x", 1, 4)] == []


def test_a_damaged_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"no Arrow")
    with pytest.raises(pa.ArrowException):
        next(read_bucket(tmp_path / "x", 1, 4))


def test_buckets_have_few_enough_documents_and_hold_neighbours() -> None:
    numbers = np.random.default_rng(0)
    # Three far places with ten clusters each.
    centroids = (np.repeat(np.eye(3, 8), 10, axis=0) + 0.05 * numbers.standard_normal((30, 8))).astype(np.float32)
    documents = np.full(30, 100_000)
    buckets = buckets_of(centroids, documents, 1_000_000)
    sizes = np.bincount(buckets, documents)
    assert sizes.max() <= 1_000_000
    assert buckets_of(centroids, documents, 10**9).max() >= 29  # at least 64 buckets, as far as there are clusters
    assert buckets_of(centroids, documents // 1000, 10**9).max() == 0  # which are not worth several tasks
    assert all(
        len({*(cluster // 10 for cluster in np.flatnonzero(buckets == b))}) == 1 for b in range(buckets.max() + 1)
    )


def test_a_cluster_that_is_too_large_is_a_bucket_alone() -> None:
    buckets = buckets_of(np.eye(4, dtype=np.float32), np.array([10, 10, 10**6, 10]), 20_000)
    assert (buckets == buckets[2]).sum() == 1


def test_equal_centroids_are_divided_all_the_same() -> None:
    buckets = buckets_of(np.ones((8, 4), np.float32), np.full(8, 10**6), 10**6)
    assert sorted(buckets.tolist()) == list(range(8))
