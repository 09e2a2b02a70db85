"""kill -9 of whole cluster and deduplication runs, once in each step: the same bytes as of an undisturbed run."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from mlfilter_core.config.clustering import ClusterJob
from tests.faults.conftest import TEST_S
from tests.faults.killed_runs import content, run_killed_at
from tests.mlfilter_core.clustering.topics import run_steps, write_topics
from tests.mlfilter_core.deduplication.corpora import planted, write_vectors

pytestmark = [pytest.mark.timeout(TEST_S), pytest.mark.usefixtures("api")]


def jobs_of(folder: Path, **params: object) -> dict[str, Path]:
    """Writes job files over the embeddings of a folder: one for runs that are killed, one for the other."""
    jobs = {}
    for name in ("killed", "undisturbed"):
        own = {"embeddings_directory": str(folder / "embeddings"), "output_dir": str(folder / name), "device": "cpu"}
        content = {"params": {**own, **params}, "local_settings": {"workers": 2}, "files_per_task": 1}
        jobs[name] = folder / f"{name}.yaml"
        jobs[name].write_text(yaml.safe_dump(content))
    return jobs


def test_cluster_runs_that_are_killed_in_each_step(tmp_path: Path) -> None:
    for seed, name in enumerate("xyz"):
        write_topics(tmp_path / f"embeddings/{name}.h5", np.arange(2000) % 3, seed)
    jobs = jobs_of(tmp_path, n_clusters=5)
    moments = (
        *("before y.npz", "before clusters.safetensors", "after clusters.safetensors"),
        *("before y.parquet", "before clusters.jsonl"),
    )
    run_killed_at("cluster", jobs["killed"], tmp_path, moments)
    run_killed_at("cluster", jobs["undisturbed"], tmp_path, ())
    found, expected = content(tmp_path / "killed"), content(tmp_path / "undisturbed")
    assert sorted(expected) == [
        *("clusters.jsonl", "clusters.safetensors"),
        *(f"clusters/{name}.parquet" for name in "xyz"),
    ]
    assert found == expected
    assert not (tmp_path / "killed/clusters/.sample").exists()


def test_deduplication_runs_that_are_killed_in_each_step(tmp_path: Path) -> None:
    vectors = planted(900, 300)
    for name, rows in zip("xyz", np.array_split(vectors, 3), strict=True):
        write_vectors(tmp_path / f"embeddings/{name}.h5", rows)
    clusters = {"embeddings_directory": tmp_path / "embeddings", "output_dir": tmp_path, "n_clusters": 6}
    run_steps(ClusterJob.model_validate({"params": {**clusters, "device": "cpu"}}))
    params = {"clusters_directory": str(tmp_path / "clusters"), "threshold": 0.9, "write_documents": False}
    jobs = jobs_of(tmp_path, **params)
    moments = (
        *("before y.npz", "before cells-0.npz", "before duplicates.arrow", "after duplicates.arrow"),
        *("after duplicates.json", "before y.parquet"),
    )
    run_killed_at("deduplicate", jobs["killed"], tmp_path, moments)
    run_killed_at("deduplicate", jobs["undisturbed"], tmp_path, ())
    found, expected = content(tmp_path / "killed"), content(tmp_path / "undisturbed")
    assert sorted(expected) == [
        *("duplicates.arrow", "duplicates.json"),
        *(f"duplicates/{name}.parquet" for name in "xyz"),
    ]
    assert found == expected
    assert not (tmp_path / "killed/duplicates/.rows").exists()
