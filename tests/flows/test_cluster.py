import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

from flows.cluster import cluster
from flows.embed import embed
from flows.running.report import FilesFailedError
from flows.running.start import run_job_file
from mlfilter_core.config.clustering import ClusterJob
from mlfilter_core.config.job_files import load_job
from mlfilter_core.errors import ConfigError
from tests.flows.conftest import WriteJob, cluster_job_file, write_embeddings
from tests.flows.dask_workers import last_task_runs
from tests.mlfilter_core.clustering.topics import run_steps


def test_the_flow_equals_the_direct_computation(embed_job: WriteJob, tmp_path: Path, client: SyncPrefectClient) -> None:
    embed(embed_job())
    report = cluster(cluster_job_file(tmp_path))
    assert [(row.embeddings, row.status, row.documents) for row in report.reports] == [
        ("a/x.h5", "clustered", 5),
        ("b/x.h5", "clustered", 7),
        ("b/y.h5", "clustered", 9),
    ]
    names = {run.name for run in last_task_runs(client, 7)}
    assert names == {
        *(f"{verb} {file}.h5" for verb in ("sample", "cluster") for file in ("a/x", "b/x", "b/y")),
        "find clusters.safetensors",
    }
    run_steps(load_job(cluster_job_file(tmp_path, output_dir=str(tmp_path / "directly")), ClusterJob, {}))
    for path in ("clusters/a/x.parquet", "clusters/b/y.parquet", "clusters.safetensors", "clusters.jsonl"):
        assert (tmp_path / "out" / path).read_bytes() == (tmp_path / "directly" / path).read_bytes()
    assert report.page is not None and "21 documents in 3 clusters" in " ".join(report.page.read_text().split())
    wanted = ArtifactFilter(key=ArtifactFilterKey(any_=["cluster-summary"]))
    (summary,) = client.read_artifacts(artifact_filter=wanted, limit=1, sort="CREATED_DESC")
    assert "## Largest of 3 clusters" in str(summary.data)
    assert "![Largest clusters](data:image/svg+xml;base64," in str(summary.data)
    assert [row.status for row in cluster(cluster_job_file(tmp_path)).reports] == ["skipped"] * 3


def test_the_texts_of_the_sources_name_the_clusters(embed_job: WriteJob, tmp_path: Path) -> None:
    embed(embed_job())
    cluster(cluster_job_file(tmp_path, n_clusters=1))
    (row,) = (json.loads(line) for line in (tmp_path / "out" / "clusters.jsonl").read_text().splitlines())
    assert (row["name"], row["documents"]) == ("word", 21)
    assert row["nearest"][0]["text"].startswith("word word")


def test_a_broken_file_fails_alone(tmp_path: Path) -> None:
    for name in ("x", "y"):
        write_embeddings(tmp_path / "out" / "embeddings" / f"{name}.h5", 30)
    (tmp_path / "out" / "embeddings" / "broken.h5").write_bytes(b"no HDF5")
    with pytest.raises(FilesFailedError, match=r"broken\.h5"):
        cluster(cluster_job_file(tmp_path))
    for name in ("x", "y"):
        assert pq.read_table(tmp_path / "out" / "clusters" / f"{name}.parquet").num_rows == 30


def test_a_run_with_a_failed_file_leaves_no_list_of_clusters_as_they_were_before(tmp_path: Path) -> None:
    write_embeddings(tmp_path / "out" / "embeddings" / "x.h5", 30)
    cluster(cluster_job_file(tmp_path))
    (tmp_path / "out" / "embeddings" / "broken.h5").write_bytes(b"no HDF5")
    old = {"n_clusters": "auto", "centroids": str(tmp_path / "out" / "clusters.safetensors")}
    with pytest.raises(FilesFailedError, match=r"broken\.h5"):
        cluster(cluster_job_file(tmp_path, **old))
    assert not (tmp_path / "out" / "clusters.jsonl").exists()


def test_a_finished_folder_is_not_finished_for_other_settings(tmp_path: Path) -> None:
    write_embeddings(tmp_path / "out" / "embeddings" / "x.h5", 30)
    job = cluster_job_file(tmp_path)
    run_job_file("cluster", job)
    assert [row.status for row in run_job_file("cluster", job).reports] == ["skipped"]
    for name, value in {"n_clusters": 2, "seed": 1}.items():
        with pytest.raises(ConfigError, match=rf"{name}: \d in the file, {value} asked for"):
            run_job_file("cluster", job, {f"params.{name}": value})
    overwritten = run_job_file("cluster", job, {"params.n_clusters": 2, "params.overwrite": True})
    assert [row.status for row in overwritten.reports] == ["clustered"]
    write_embeddings(tmp_path / "out" / "embeddings" / "y.h5", 30)
    pq.write_table(pq.read_table(tmp_path / "out/clusters/x.parquet"), tmp_path / "out/clusters/y.parquet")
    with pytest.raises(ConfigError, match="found on other embeddings: 1 files then, 2 now"):
        run_job_file("cluster", job, {"params.n_clusters": 2})


def test_a_corpus_that_shrank_is_told(tmp_path: Path) -> None:
    for name in ("x", "y"):
        write_embeddings(tmp_path / "out" / "embeddings" / f"{name}.h5", 30)
    job = cluster_job_file(tmp_path)
    run_job_file("cluster", job)
    (tmp_path / "out" / "embeddings" / "y.h5").unlink()
    with pytest.raises(ConfigError, match="found on other embeddings: 2 files then, 1 now"):
        run_job_file("cluster", job)


def test_a_missing_list_is_written_and_an_existing_one_is_left(tmp_path: Path) -> None:
    write_embeddings(tmp_path / "out" / "embeddings" / "x.h5", 30)
    job, path = cluster_job_file(tmp_path), tmp_path / "out" / "clusters.jsonl"
    run_job_file("cluster", job)
    content = path.read_bytes()
    path.unlink()
    assert [row.status for row in run_job_file("cluster", job).reports] == ["skipped"]
    assert path.read_bytes() == content
    before = path.stat()
    cluster(job)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_it_runs_as_a_script(tmp_path: Path) -> None:
    write_embeddings(tmp_path / "out" / "embeddings" / "x.h5", 30)
    command = [sys.executable, "flows/cluster.py", "--config", str(cluster_job_file(tmp_path))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "cluster: 1 file" in done.stdout
    assert "largest of 3 clusters, by documents:\n" in done.stdout
    assert all(len(line) <= 80 for line in done.stdout.partition("largest of")[2].splitlines())
    assert (tmp_path / "out" / "clusters.jsonl").exists()
