from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from mlfilter_core.embedding_store.centroids import centroids_beside
from mlfilter_core.embedding_store.cluster_file import write_clusters
from mlfilter_core.embedding_store.clusters_of_rows import Clusters, find_clusters
from mlfilter_core.embedding_store.layout import CLUSTER_KEYS
from mlfilter_core.embedding_store.reader import EmbeddingFile
from mlfilter_core.errors import ClusterFileError, ConfigError
from mlfilter_core.files.task_files import TaskFile
from tests.mlfilter_core.clustering.topics import (
    cluster_job,
    run_steps,
    vectors_of,
    write_topics,
    write_vectors,
)

ALL = slice(None)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    write_topics(tmp_path / "out/embeddings/a/x.h5", np.arange(60) % 3)
    run_steps(cluster_job(tmp_path))
    return tmp_path / "out"


def clusters_in(out: Path) -> Clusters:
    return find_clusters(out / "clusters", centroids_beside(out / "clusters"))


def values(out: Path, clusters: Clusters | None = None) -> dict[str, list[object]]:
    clusters = clusters or clusters_in(out)
    file = TaskFile("a/x.h5", "a/x", out / "embeddings")
    with EmbeddingFile(file.path, "train") as embeddings:
        return {key: list(of(ALL)) for key, of in clusters.values(file, embeddings, CLUSTER_KEYS).items()}


def test_each_row_has_its_cluster_with_its_name(out: Path) -> None:
    table = pq.read_table(out / "clusters/a/x.parquet")
    found = values(out)
    assert found["cluster"] == table["cluster"].to_pylist()
    assert found["cluster_distance"] == table["cluster_distance"].to_pylist()
    name_of = dict(zip(found["cluster"], found["cluster_name"], strict=True))
    assert len(name_of) == len(set(name_of.values())) == 3
    assert found["cluster_name"] == [name_of[cluster] for cluster in found["cluster"]]


def test_a_document_in_no_cluster_has_no_name(tmp_path: Path) -> None:
    vectors = vectors_of(np.arange(60) % 3)
    vectors[7] = 0
    write_vectors(tmp_path / "out/embeddings/a/x.h5", vectors)
    run_steps(cluster_job(tmp_path))
    found = values(tmp_path / "out")
    assert (found["cluster"][7], found["cluster_name"][7]) == (-1, "")
    assert all(found["cluster_name"][i] for i in range(60) if i != 7)


def test_clusters_of_other_embeddings_are_refused(out: Path) -> None:
    write_topics(out / "embeddings/a/x.h5", np.arange(60) % 2)
    with pytest.raises(ClusterFileError, match=r"x.parquet was made from another version of .*x.h5; cluster again"):
        values(out)


def test_clusters_of_other_centroids_are_refused(out: Path) -> None:
    before = clusters_in(out)
    run_steps(cluster_job(out.parent, n_clusters=2, overwrite=True))
    with pytest.raises(ClusterFileError, match=r"x.parquet is of other centroids than .*clusters.safetensors; cluster"):
        values(out, before)


def test_centroids_that_changed_during_a_run_are_refused(out: Path) -> None:
    before, kept = clusters_in(out), (out / "clusters/a/x.parquet").read_bytes()
    run_steps(cluster_job(out.parent, n_clusters=2, overwrite=True))
    (out / "clusters/a/x.parquet").write_bytes(kept)
    with pytest.raises(ConfigError, match=r"clusters.safetensors was changed during the run; run the job again"):
        values(out, before)


def write_same(out: Path, cluster: int, distance: float, n: int = 60) -> None:
    """Replaces the file of clusters by one with the same cluster in each of n rows."""
    with EmbeddingFile(out / "embeddings/a/x.h5", "train") as embeddings:
        made = {
            "embeddings": embeddings.identity(),
            "request": {"centroids_sha256": clusters_in(out).sha256},
            "documents": n,
            "sizes": {},
            "no_direction": 0,
        }
    rows = (None, np.full(n, cluster, np.int32), np.full(n, distance, np.float32))
    write_clusters(out / "clusters/a/x.parquet", [rows], made, has_ids=False)


@pytest.mark.parametrize(("cluster", "distance"), [(3, 0.1), (-2, 0.1), (1, float("nan"))])
def test_a_cluster_that_does_not_exist_is_refused(out: Path, cluster: int, distance: float) -> None:
    write_same(out, cluster, distance)
    with pytest.raises(ClusterFileError, match=r"row 0 is in cluster .*, and there are 3 clusters; cluster again"):
        values(out)


def test_another_number_of_rows_is_refused(out: Path) -> None:
    write_same(out, 1, 0.1, n=59)
    with pytest.raises(ClusterFileError, match=r"x.parquet has 59 rows, and .*x.h5 60; cluster again"):
        values(out)


def test_a_missing_file_of_clusters_is_an_error_of_its_file(out: Path) -> None:
    clusters = clusters_in(out)
    (out / "clusters/a/x.parquet").unlink()
    with pytest.raises(ClusterFileError, match=r"there is no .*x.parquet, the clusters of .*x.h5; cluster again"):
        values(out, clusters)


def test_clusters_need_their_centroids(out: Path) -> None:
    (out / "clusters.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"clusters.safetensors is not a file of centroids .* name another file as"):
        clusters_in(out)
