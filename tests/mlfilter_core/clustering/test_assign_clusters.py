"""The cluster of each document, and the list of clusters."""

import json
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest

from mlfilter_core.clustering import list_clusters as list_clusters_module
from mlfilter_core.clustering.assign_clusters import ClusterReport
from mlfilter_core.clustering.work import cluster_workload
from mlfilter_core.config.execution import LocalSettings
from mlfilter_core.embedding_store.centroids import Centroids, ClusterName, load_centroids
from mlfilter_core.embedding_store.cluster_file import ClusterFile, write_clusters
from mlfilter_core.errors import ClusterFileError, ConfigError, EmbeddingFileError, OutputConflictError
from mlfilter_core.job_kinds import course_of
from tests.mlfilter_core.clustering.topics import (
    DIM,
    TOPICS,
    cluster_job,
    run,
    run_steps,
    vectors_of,
    write_topics,
    write_vectors,
)


def test_each_document_is_in_the_nearest_cluster(tmp_path: Path) -> None:
    paths = {name: tmp_path / f"out/embeddings/{name}.h5" for name in ("a/x", "b/x")}
    vectors = {
        name: write_topics(path, np.arange(n) % 3, n)
        for (name, path), n in zip(paths.items(), (20, 9_000), strict=True)
    }
    reports = run_steps(cluster_job(tmp_path))
    assert [(report.documents, report.status) for report in reports] == [(20, "clustered"), (9_000, "clustered")]
    centroids = load_centroids(tmp_path / "out" / "clusters.safetensors").vectors.astype(np.float64)
    for name, rows in vectors.items():
        table = pq.read_table(tmp_path / f"out/clusters/{name}.parquet")
        assert table.column_names == ["document_id", "cluster", "cluster_distance"]
        assert table["document_id"].to_pylist() == [f"x-{i}" for i in range(len(rows))]
        cosines = rows.astype(np.float64) @ centroids.T
        assert table["cluster"].to_pylist() == cosines.argmax(axis=1).tolist()
        assert np.allclose(table["cluster_distance"].to_numpy(), 1 - cosines.max(axis=1), atol=1e-6)


def test_the_clusters_of_a_file_do_not_depend_on_the_files_beside_it(tmp_path: Path) -> None:
    write_topics(tmp_path / "out/embeddings/x.h5", np.arange(100) % 3)
    run_steps(cluster_job(tmp_path))
    before = (tmp_path / "out/clusters/x.parquet").read_bytes()
    write_topics(tmp_path / "out/embeddings/y.h5", np.arange(10) % 3)
    centroids = tmp_path / "out" / "clusters.safetensors"
    run_steps(cluster_job(tmp_path, n_clusters="auto", centroids=centroids, output_dir=tmp_path / "again"))
    assert (tmp_path / "again/clusters/x.parquet").read_bytes() == before


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int8"])
def test_embeddings_of_any_precision_and_length_have_the_clusters_of_their_directions(
    tmp_path: Path, dtype: str
) -> None:
    topics = np.arange(60) % 3
    vectors = vectors_of(topics) * np.linspace(0.5, 20, 60)[:, None]
    path = tmp_path / "out/embeddings/x.h5"
    if dtype == "int8":
        scales = np.abs(vectors).max(axis=1) / 127
        write_vectors(path, np.round(vectors / scales[:, None]).astype(np.int8))
        with h5py.File(path, "r+") as file:
            file["train/embedding_scale"] = scales.astype(np.float32)
    else:
        write_vectors(path, vectors.astype(dtype))
    run_steps(cluster_job(tmp_path))
    with ClusterFile(tmp_path / "out/clusters/x.parquet") as clusters:
        found, _ = clusters.read()
    assert len({*zip(topics.tolist(), found.tolist(), strict=True)}) == 3


def test_a_document_of_chunks_is_in_the_cluster_of_their_mean_direction(tmp_path: Path) -> None:
    topics = np.array([0, 0, 1, 1, 1, 0, 2, 2])
    first = np.array([0, 2, 3, 6])  # the third document has chunks 3, 4, 5 of topics 1, 1, 0
    path = tmp_path / "out/embeddings/x.h5"
    path.parent.mkdir(parents=True)
    with h5py.File(path, "w") as file:
        file["train/embeddings"] = vectors_of(topics, spread=0.01) * np.array([1, 1, 1, 1, 1, 9, 1, 1])[:, None]
        file["train/first_chunk"] = first
        file["train/document_id"] = [f"x-{i}" for i in range(4)]
    run_steps(cluster_job(tmp_path))
    with ClusterFile(tmp_path / "out/clusters/x.parquet") as clusters:
        found, distances = clusters.read()
    assert found[1] == found[2]
    assert len({*found.tolist()}) == 3
    mean = np.array([1, 2]) / np.sqrt(5)
    assert abs(distances[2] - distances[1] - (1 - mean[1])) < 0.2


def test_documents_without_a_direction_are_in_no_cluster_and_counted(tmp_path: Path) -> None:
    vectors = vectors_of(np.arange(30) % 3)
    vectors[[4, 9]] = 0
    write_vectors(tmp_path / "out/embeddings/x.h5", vectors)
    (report,) = run_steps(cluster_job(tmp_path))
    assert (report.documents, report.no_direction, report.clusters) == (30, 2, 3)
    with ClusterFile(tmp_path / "out/clusters/x.parquet") as clusters:
        found, distances = clusters.read()
    assert np.flatnonzero(found == -1).tolist() == [4, 9]
    assert distances[[4, 9]].tolist() == [1, 1]


def test_an_empty_file_has_an_empty_file_of_clusters(tmp_path: Path) -> None:
    write_topics(tmp_path / "out/embeddings/x.h5", np.arange(30) % 3)
    write_vectors(tmp_path / "out/embeddings/y.h5", np.zeros((0, DIM), np.float32))
    assert [report.documents for report in run_steps(cluster_job(tmp_path))] == [30, 0]
    assert pq.read_table(tmp_path / "out/clusters/y.parquet").num_rows == 0


def test_the_list_has_all_clusters_the_largest_first(tmp_path: Path) -> None:
    topics = np.array([0] * 5 + [1] * 10 + [2] * 15)
    for name in ("x", "y"):
        write_topics(tmp_path / f"out/embeddings/{name}.h5", topics)
    run_steps(cluster_job(tmp_path))
    rows = [json.loads(line) for line in (tmp_path / "out/clusters.jsonl").read_text().splitlines()]
    assert [row["documents"] for row in rows] == [30, 20, 10]
    assert [row["tokens"] for row in rows] == [2 * sum(range(16, 31)), 2 * sum(range(6, 16)), 2 * sum(range(1, 6))]
    assert sorted(row["cluster"] for row in rows) == [0, 1, 2]
    tables = [pq.read_table(tmp_path / f"out/clusters/{name}.parquet") for name in ("x", "y")]
    clusters, distances = (
        np.concatenate([t[key].to_numpy() for t in tables]) for key in ("cluster", "cluster_distance")
    )
    for row in rows:
        assert row["mean_distance"] == pytest.approx(distances[clusters == row["cluster"]].mean(), abs=6e-5)
    assert [TOPICS[2] in row["words"] for row in rows] == [True, False, False]
    assert all(len(row["nearest"]) == 3 for row in rows)


def test_the_list_has_the_shares_of_the_most_frequent_values(tmp_path: Path) -> None:
    topics = np.repeat([0, 1, 2], [60, 40, 20])
    languages = [*["de"] * 45, *["en"] * 15, *(f"l{i % 8}" for i in range(40)), *["de"] * 20]
    write_topics(tmp_path / "out/embeddings/x.h5", topics, languages=languages)
    run_steps(cluster_job(tmp_path))
    rows = [json.loads(line) for line in (tmp_path / "out/clusters.jsonl").read_text().splitlines()]
    assert [row["values"] for row in rows] == [
        {"language": {"de": 0.75, "en": 0.25}},
        {"language": {f"l{i}": 0.125 for i in range(5)}},
        {"language": {"de": 1}},
    ]


def test_only_the_last_of_several_runs_lists_the_clusters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(list_clusters_module, "N_TOGETHER", 2)
    for name in "vwxyz":
        write_topics(tmp_path / f"out/embeddings/{name}.h5", np.arange(30) % 3)
    run_steps(cluster_job(tmp_path))
    shards = [{"tasks": 2, "local_tasks": 1, "local_rank_offset": rank} for rank in range(2)]
    jobs = [cluster_job(tmp_path).model_copy(update={"local_settings": LocalSettings(**shard)}) for shard in shards]
    shutil.rmtree(tmp_path / "out/clusters")
    (tmp_path / "out/clusters.jsonl").unlink()
    run_steps(jobs[0])
    assert not (tmp_path / "out/clusters.jsonl").exists()
    run_steps(jobs[1])
    rows = [json.loads(line) for line in (tmp_path / "out/clusters.jsonl").read_text().splitlines()]
    assert [row["documents"] for row in rows] == [50, 50, 50]


def test_files_of_other_centroids_are_not_in_the_list(tmp_path: Path) -> None:
    for name in "xy":
        write_topics(tmp_path / f"out/embeddings/{name}.h5", np.arange(30) % 3)
    run_steps(cluster_job(tmp_path))
    new = cluster_job(tmp_path, n_clusters=2, overwrite=True)
    shards = [
        new.model_copy(update={"local_settings": LocalSettings(tasks=2, local_tasks=1, local_rank_offset=rank)})
        for rank in range(2)
    ]
    run_steps(shards[0])
    assert not (tmp_path / "out/clusters.jsonl").exists()
    run_steps(shards[1])
    rows = [json.loads(line) for line in (tmp_path / "out/clusters.jsonl").read_text().splitlines()]
    assert sum(row["documents"] for row in rows) == 60
    assert len(rows) == 2


def test_centroids_that_changed_during_the_run_are_not_listed(tmp_path: Path) -> None:
    write_topics(tmp_path / "out/embeddings/x.h5", np.arange(30) % 3)
    run_steps(cluster_job(tmp_path))
    workload = cluster_workload(cluster_job(tmp_path))
    run_steps(cluster_job(tmp_path, n_clusters=2, overwrite=True))
    with pytest.raises(ConfigError, match=r"clusters\.safetensors was changed during the run; run the job again"):
        workload.work.conclude()


@pytest.mark.parametrize("sizes", [{"99": [1, 1, 0.0]}, {"0": [1, 1]}, {"x": [1, 1, 0.0]}, {"0": 3}])
def test_a_file_with_sizes_of_no_clusters_is_broken(tmp_path: Path, sizes: dict[str, Any]) -> None:
    centroids = Centroids(np.ones((2, 1), np.float32), [ClusterName("a"), ClusterName("b")], {}, {})
    request = {"group": "train", "centroids_sha256": centroids.sha256}
    made = {"embeddings": {}, "request": request, "documents": 0, "no_direction": 0, "sizes": sizes}
    write_clusters(tmp_path / "x.parquet", [], made, has_ids=False)
    with pytest.raises(ClusterFileError, match=r"x\.parquet: its sizes are not those of clusters; cluster again"):
        list_clusters_module.sizes_of([tmp_path / "x.parquet"], centroids)


def test_samples_that_a_killed_run_left_are_removed(tmp_path: Path) -> None:
    write_topics(tmp_path / "out/embeddings/x.h5", np.arange(30) % 3)
    steps = course_of(cluster_job(tmp_path))
    run(next(steps))
    samples = tmp_path / "out/clusters/.sample"
    shutil.copytree(samples, tmp_path / "kept")
    run(next(steps))
    shutil.copytree(tmp_path / "kept", samples)  # as of a run that was killed before it removed them
    run_steps(cluster_job(tmp_path))
    assert not samples.exists()


def test_what_is_finished_is_skipped_and_what_changed_is_refused(tmp_path: Path) -> None:
    for name in ("x", "y"):
        write_topics(tmp_path / f"out/embeddings/{name}.h5", np.arange(30) % 3)
    job = cluster_job(tmp_path)
    run_steps(job)
    assert [report.status for report in run_steps(job)] == ["skipped", "skipped"]
    (tmp_path / "out/clusters/y.parquet").unlink()
    assert [report.status for report in run_steps(job)] == ["skipped", "clustered"]
    other = cluster_job(tmp_path, n_clusters=2, overwrite=True)
    assert [report.status for report in run_steps(other)] == ["clustered", "clustered"]
    write_topics(tmp_path / "out/embeddings/x.h5", np.arange(30) % 2)
    with pytest.raises(OutputConflictError, match="made from another version"):
        run(cluster_workload(other.model_copy(update={"params": other.params.model_copy(update={"overwrite": False})})))


def test_a_broken_file_of_clusters_is_refused_and_replaced_with_overwrite(tmp_path: Path) -> None:
    write_topics(tmp_path / "out/embeddings/x.h5", np.arange(30) % 3)
    job = cluster_job(tmp_path)
    run_steps(job)
    path = tmp_path / "out/clusters/x.parquet"
    content = path.read_bytes()
    for cut in (0, 3, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:cut])
        with pytest.raises(ClusterFileError, match="not a file of clusters"):
            ClusterFile(path)
        with pytest.raises(OutputConflictError, match=r"params\.overwrite: true"):
            run(cluster_workload(job))
    assert [report.status for report in run_steps(cluster_job(tmp_path, overwrite=True))] == ["clustered"]
    assert path.read_bytes() == content


def test_a_file_of_another_width_fails_alone(tmp_path: Path) -> None:
    write_topics(tmp_path / "out/embeddings/x.h5", np.arange(30) % 3)
    run_steps(cluster_job(tmp_path))
    write_vectors(tmp_path / "out/embeddings/y.h5", np.ones((9, 5), np.float32))
    job = cluster_job(tmp_path, n_clusters="auto", centroids=tmp_path / "out" / "clusters.safetensors")
    with pytest.raises(EmbeddingFileError, match=r"y\.h5 has embeddings of width 5, and the centroids 16"):
        run(cluster_workload(job))


def test_a_run_ends_with_its_largest_clusters(tmp_path: Path) -> None:
    write_topics(tmp_path / "out/embeddings/a/b/x.h5", np.repeat(np.arange(3), (5, 10, 25)))
    reports = run_steps(cluster_job(tmp_path))
    assert ClusterReport.sample_of(reports) == [
        "largest of 3 clusters, by documents:",
        "   62.5 %  bishop, chess, pawn",
        "   25.0 %  anchor, harbour, mast",
        "   12.5 %  bakery, bread, flour",
    ]
    (tmp_path / "out/clusters.jsonl").unlink()
    assert ClusterReport.sample_of(reports) == []
