"""The first two steps of a cluster job: samples of all files, and the centroids that they give."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from mlfilter_core.clustering.find_centroids import automatic_clusters
from mlfilter_core.clustering.sample import SampleRequest, draw_sample, load_sample, make_sample
from mlfilter_core.clustering.work import centroids_to_find, centroids_workload, sample_workload
from mlfilter_core.embedding_store.centroids import load_centroids, write_centroids
from mlfilter_core.embedding_store.layout import FORMAT_VERSION
from mlfilter_core.errors import ConfigError, EmbeddingFileError
from mlfilter_core.files.task_files import TaskFile
from tests.mlfilter_core.clustering.topics import (
    DIM,
    TOPICS,
    WORDS,
    cluster_job,
    run,
    run_clustering,
    vectors_of,
    write_topics,
    write_vectors,
)


def request_of(folder: Path, share: float, text_share: float = 0.0, seed: int = 0) -> SampleRequest:
    return SampleRequest(folder / "samples", "train", seed, share, text_share, None)


def topics_file(folder: Path, n: int, name: str = "a/x") -> TaskFile:
    write_topics(folder / "out" / "embeddings" / f"{name}.h5", np.arange(n) % 3)
    return TaskFile(f"{name}.h5", name, folder / "out" / "embeddings")


def test_a_sample_has_the_share_that_was_asked_for_and_others_with_other_seeds(tmp_path: Path) -> None:
    file = topics_file(tmp_path, 20_000)
    tenth = draw_sample(file, request_of(tmp_path, 0.1))
    assert 1_800 < len(tenth.order) < 2_200
    assert tenth.directions.shape == (len(tenth.order), DIM)
    fifth = draw_sample(file, request_of(tmp_path, 0.2))
    assert set(tenth.order.tolist()) < set(fifth.order.tolist())
    other = draw_sample(file, request_of(tmp_path, 0.1, seed=1))
    assert not set(tenth.order.tolist()) & set(other.order.tolist())


def test_a_sample_of_all_has_the_directions_of_all_documents(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).standard_normal((500, DIM)) * np.logspace(-30, 30, 500)[:, None]
    write_vectors(tmp_path / "x.h5", vectors)
    sample = draw_sample(TaskFile("x.h5", "x", tmp_path), request_of(tmp_path, 1.0))
    assert (np.diff(sample.order.astype(object)) > 0).all()
    expected = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    found = sample.directions.astype(np.float64) @ expected.T
    assert np.allclose(np.sort(found.max(axis=1)), 1, atol=2e-3)
    assert len(set(found.argmax(axis=1).tolist())) == 500


def test_texts_are_those_of_their_documents(tmp_path: Path) -> None:
    file = topics_file(tmp_path, 3_000)
    sample = draw_sample(file, request_of(tmp_path, 0.5, 0.1))
    assert 200 < len(sample.texts) < 400
    topics = sample.directions[: len(sample.texts)].argmax(axis=1)
    for topic, document_id, text in zip(topics.tolist(), sample.ids, sample.texts, strict=True):
        assert text == f"The {TOPICS[topic]} and the {WORDS[TOPICS[topic]]}."
        assert int(document_id.removeprefix("x-")) % 3 == topic


def test_documents_without_a_direction_are_not_drawn(tmp_path: Path) -> None:
    vectors = vectors_of(np.arange(40) % 3)
    vectors[::2] = 0
    write_vectors(tmp_path / "x.h5", vectors)
    sample = draw_sample(TaskFile("x.h5", "x", tmp_path), request_of(tmp_path, 1.0))
    assert (len(sample.order), sample.documents) == (20, 40)


def test_an_embedding_that_is_not_finite_is_an_error(tmp_path: Path) -> None:
    vectors = vectors_of(np.arange(40) % 3)
    vectors[7, 3] = np.nan
    write_vectors(tmp_path / "x.h5", vectors)
    with pytest.raises(EmbeddingFileError, match=r"x\.h5: an embedding of rows 0 to 39 is not finite"):
        draw_sample(TaskFile("x.h5", "x", tmp_path), request_of(tmp_path, 1.0))


def test_a_stored_sample_is_read_back_until_its_file_or_its_request_changes(tmp_path: Path) -> None:
    file, request = topics_file(tmp_path, 300), request_of(tmp_path, 0.5, 0.1)
    assert load_sample(file, request) is None
    assert make_sample(file, request).status == "sampled"
    stored, drawn = load_sample(file, request), draw_sample(file, request)
    assert stored is not None
    assert np.array_equal(stored.order, drawn.order)
    assert np.array_equal(stored.directions, drawn.directions)
    assert (stored.texts, stored.ids, stored.documents) == (drawn.texts, drawn.ids, 300)
    assert load_sample(file, request_of(tmp_path, 0.4, 0.1)) is None
    path = request.output(file)
    content = path.read_bytes()
    for cut in range(0, len(content), 97):
        path.write_bytes(content[:cut])
        assert load_sample(file, request) is None
    path.write_bytes(content)
    topics_file(tmp_path, 301)
    assert load_sample(file, request) is None


def test_centroids_have_names_and_the_documents_nearest_to_them(tmp_path: Path) -> None:
    for number in range(4):
        write_topics(tmp_path / f"out/embeddings/{number}.h5", np.arange(50 + number) % 3, seed=number)
    run_clustering(cluster_job(tmp_path))
    centroids = load_centroids(tmp_path / "out" / "clusters.safetensors")
    topics = centroids.vectors[:, :3].argmax(axis=1)
    assert sorted(topics.tolist()) == [0, 1, 2]
    for topic, name in zip(topics.tolist(), centroids.names, strict=True):
        assert set(name.name.split(", ")) < {TOPICS[topic], *WORDS[TOPICS[topic]].split()}
        assert len(name.nearest) == 3
        assert all(TOPICS[topic] in near.text for near in name.nearest)
        assert [near.distance for near in name.nearest] == sorted(near.distance for near in name.nearest)
    assert centroids.found_on["documents"] == sum(50 + number for number in range(4))


def test_samples_are_removed_once_the_centroids_are_there(tmp_path: Path) -> None:
    topics_file(tmp_path, 30)
    job = cluster_job(tmp_path)
    run(sample_workload(job))
    assert list((tmp_path / "out/clusters").rglob("*.npz"))
    run(centroids_workload(job))
    assert not list((tmp_path / "out/clusters").rglob("*.npz"))
    assert centroids_to_find(job) is None


@pytest.mark.parametrize(("n", "clusters"), [(1, 1), (3, 1), (100, 5), (10_000, 50), (1_000_000, 500)])
def test_the_automatic_number_of_clusters(n: int, clusters: int) -> None:
    assert automatic_clusters(n) == clusters


def test_a_small_corpus_has_the_automatic_number_of_clusters(tmp_path: Path) -> None:
    topics_file(tmp_path, 60, "x")
    topics_file(tmp_path, 40, "y")
    run_clustering(cluster_job(tmp_path, n_clusters="auto"))
    assert len(load_centroids(tmp_path / "out" / "clusters.safetensors").vectors) == 5


def test_fewer_documents_than_clusters_give_a_cluster_each(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    topics_file(tmp_path, 4)
    run_clustering(cluster_job(tmp_path, n_clusters=10))
    assert len(load_centroids(tmp_path / "out" / "clusters.safetensors").vectors) == 4
    assert "4 clusters instead of 10: the sample has no more different vectors" in caplog.text


def test_the_sample_fits_in_the_memory_that_it_may_take(tmp_path: Path) -> None:
    topics_file(tmp_path, 5_000)
    run_clustering(cluster_job(tmp_path, memory_gb=1e-4))
    found_on = load_centroids(tmp_path / "out" / "clusters.safetensors").found_on
    assert 400 < found_on["vectors"] <= 0.4 * 1e5 / (4 * DIM)


def test_a_corpus_that_grew_needs_a_decision(tmp_path: Path) -> None:
    topics_file(tmp_path, 30)
    run_clustering(cluster_job(tmp_path))
    before = (tmp_path / "out" / "clusters.safetensors").read_bytes()
    topics_file(tmp_path, 30, "b/y")
    with pytest.raises(ConfigError, match="found on other embeddings: 1 files then, 2 now"):
        centroids_to_find(cluster_job(tmp_path))
    with pytest.raises(ConfigError, match="n_clusters: 3 in the file, 2 asked for"):
        centroids_to_find(cluster_job(tmp_path, n_clusters=2))
    old = cluster_job(tmp_path, n_clusters="auto", centroids=tmp_path / "out" / "clusters.safetensors")
    assert [report.status for report in run_clustering(old)] == ["skipped", "clustered"]
    assert (tmp_path / "out" / "clusters.safetensors").read_bytes() == before
    assert centroids_to_find(cluster_job(tmp_path, overwrite=True)) is not None


def stated_encoder(path: Path, weights: str) -> None:
    """Makes a file state an encoder."""
    facts = {
        "source": {"path": "x", "folder": "y", "bytes": 1, "mtime_ns": 1, "sha256": weights},
        "request": {"max_line_bytes": 1, "id_key": None, "weights_sha256": weights, "text_keys": ["text"]},
        "encoder": {"is_normalized": True},
        "counts": dict.fromkeys(
            ("lines", "documents", "rejected", "blank", "truncated", "duplicate_ids", "tokens"), 30
        ),
        "versions": {},
    }
    with h5py.File(path, "r+") as file:
        file["train"].attrs["format_version"] = FORMAT_VERSION
        for name, value in facts.items():
            file["train"].attrs[name] = json.dumps(value)


def test_embeddings_of_two_encoders_are_refused(tmp_path: Path) -> None:
    for name in ("x", "y"):
        topics_file(tmp_path, 30, name)
        stated_encoder(tmp_path / f"out/embeddings/{name}.h5", f"weights of {name}")
    job = cluster_job(tmp_path)
    run(sample_workload(job))
    with pytest.raises(ConfigError, match="were made by different encoders"):
        run(centroids_workload(job))


def test_embeddings_of_two_widths_are_refused(tmp_path: Path) -> None:
    topics_file(tmp_path, 30, "x")
    write_vectors(tmp_path / "out/embeddings/y.h5", np.ones((9, 5), np.float32))
    job = cluster_job(tmp_path)
    run(sample_workload(job))
    with pytest.raises(ConfigError, match=r"of width 16 and .*y\.h5 of width 5"):
        run(centroids_workload(job))


def test_embeddings_of_zeros_alone_are_refused(tmp_path: Path) -> None:
    write_vectors(tmp_path / "out/embeddings/y.h5", np.zeros((9, 5), np.float32))
    job = cluster_job(tmp_path)
    run(sample_workload(job))
    with pytest.raises(ConfigError, match="no file has an embedding other than zeros"):
        run(centroids_workload(job))


def test_a_changed_file_of_centroids_is_refused(tmp_path: Path) -> None:
    topics_file(tmp_path, 30)
    run_clustering(cluster_job(tmp_path))
    path = tmp_path / "out" / "clusters.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="is not a file of centroids"):
        centroids_to_find(cluster_job(tmp_path))
    path.write_bytes(b"x")
    with pytest.raises(ConfigError, match="is not a file of centroids"):
        load_centroids(path)


def test_centroids_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    topics_file(tmp_path, 30)
    run_clustering(cluster_job(tmp_path))
    centroids = load_centroids(tmp_path / "out" / "clusters.safetensors")
    write_centroids(tmp_path / "copy", centroids)
    copy = load_centroids(tmp_path / "copy")
    assert copy.sha256 == centroids.sha256
    assert (copy.names, copy.found_on, copy.encoder) == (centroids.names, centroids.found_on, centroids.encoder)
