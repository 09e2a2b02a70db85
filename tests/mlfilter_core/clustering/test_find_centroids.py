"""The first two steps of a cluster job: samples of all files, and the centroids that they give."""

import json
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from mlfilter_core.clustering.find_centroids import automatic_clusters, cells_for
from mlfilter_core.clustering.sample import SampleRequest, draw_sample, load_sample, make_sample
from mlfilter_core.clustering.work import centroids_to_find
from mlfilter_core.embedding_store.centroids import load_centroids, write_centroids
from mlfilter_core.embedding_store.layout import FORMAT_VERSION
from mlfilter_core.errors import ConfigError, EmbeddingFileError
from mlfilter_core.files.task_files import TaskFile
from mlfilter_core.job_kinds import course_of
from mlfilter_core.work import progress
from mlfilter_core.work.progress import heard_by
from tests.mlfilter_core.clustering.topics import (
    DIM,
    TOPICS,
    WORDS,
    centroids_work,
    cluster_job,
    run,
    run_steps,
    vectors_of,
    write_topics,
    write_vectors,
)


def request_of(folder: Path, share: float, text_share: float = 0.0, seed: int = 0) -> SampleRequest:
    return SampleRequest(folder / "samples", "train", seed, share, text_share, None, None)


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
    for topic, text in zip(topics.tolist(), sample.texts, strict=True):
        assert text.beginning == f"The {TOPICS[topic]} and the {WORDS[TOPICS[topic]]}."
        assert int(text.document_id.removeprefix("x-")) % 3 == topic


def test_values_of_the_index_are_those_of_their_documents(tmp_path: Path) -> None:
    topics = np.arange(900) % 3
    languages = [("de", "en", "x" * 200)[i % 3] for i in range(900)]
    write_topics(tmp_path / "x.h5", topics, languages=languages)
    file, request = TaskFile("x.h5", "x", tmp_path), request_of(tmp_path, 1.0, 0.5)
    make_sample(file, request)
    for sample in (draw_sample(file, request), load_sample(file, request)):
        assert sample is not None
        assert len(sample.texts) > 300
        for text in sample.texts:
            row = int(text.document_id.removeprefix("x-"))
            assert text.values == {"language": languages[row][:100]}
    by_topic = replace(request, describe_by=("text", "topic"))
    assert load_sample(file, by_topic) is None
    with pytest.raises(
        EmbeddingFileError, match=r'x.h5 has no "topic", which params.describe_by names; .*index/language'
    ):
        draw_sample(file, by_topic)


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
    assert (stored.texts, stored.documents) == (drawn.texts, 300)
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
    run_steps(cluster_job(tmp_path))
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
    work = centroids_work(job)
    run(work.samples())
    assert list((tmp_path / "out/clusters").rglob("*.npz"))
    run(work.workload())
    assert not list((tmp_path / "out/clusters").rglob("*.npz"))
    assert centroids_to_find(job) is None


@pytest.mark.parametrize(("n", "clusters"), [(1, 1), (3, 1), (100, 5), (10_000, 50), (1_000_000, 500)])
def test_the_automatic_number_of_clusters(n: int, clusters: int) -> None:
    assert automatic_clusters(n) == clusters


@pytest.mark.parametrize(("n", "cells"), [(100, 0), (12_800, 100), (1_000_000, 2_000), (10**9, 63_246)])
def test_cells_are_many_where_documents_are(n: int, cells: int) -> None:
    assert cells_for(n) == cells


def test_large_clusters_are_divided_into_cells(tmp_path: Path) -> None:
    numbers = np.random.default_rng(0)
    vectors = numbers.standard_normal((1280, 32)).astype(np.float32)
    write_vectors(tmp_path / "out" / "embeddings" / "x.h5", vectors)
    run_steps(cluster_job(tmp_path, n_clusters=5))
    centroids = load_centroids(tmp_path / "out" / "clusters.safetensors")
    assert len(centroids.vectors) == 5
    assert centroids.cells is not None
    assert len(centroids.cells.vectors) == 10
    assert centroids.cells.sizes.sum() == 1280
    nearest = (centroids.cells.vectors @ centroids.vectors.T).argmax(axis=1)
    assert centroids.cells.clusters.tolist() == nearest.tolist()


def test_clusters_are_not_divided_where_that_gains_little(tmp_path: Path) -> None:
    numbers = np.random.default_rng(0)
    write_vectors(tmp_path / "out" / "embeddings" / "x.h5", numbers.standard_normal((1280, 32)).astype(np.float32))
    run_steps(cluster_job(tmp_path, n_clusters=6))
    assert load_centroids(tmp_path / "out" / "clusters.safetensors").cells is None


def test_a_corpus_of_near_duplicates_is_not_divided(tmp_path: Path) -> None:
    topics_file(tmp_path, 1280)
    run_steps(cluster_job(tmp_path, n_clusters=2))
    assert load_centroids(tmp_path / "out" / "clusters.safetensors").cells is None


def test_a_small_corpus_has_the_automatic_number_of_clusters(tmp_path: Path) -> None:
    topics_file(tmp_path, 60, "x")
    topics_file(tmp_path, 40, "y")
    run_steps(cluster_job(tmp_path, n_clusters="auto"))
    assert len(load_centroids(tmp_path / "out" / "clusters.safetensors").vectors) == 5


def test_fewer_documents_than_clusters_give_a_cluster_each(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    topics_file(tmp_path, 4)
    run_steps(cluster_job(tmp_path, n_clusters=10))
    assert len(load_centroids(tmp_path / "out" / "clusters.safetensors").vectors) == 4
    assert "4 clusters instead of 10: the sample has no more different vectors" in caplog.text


def test_the_sample_fits_in_the_memory_that_it_may_take(tmp_path: Path) -> None:
    topics_file(tmp_path, 5_000)
    run_steps(cluster_job(tmp_path, memory_gb=1e-4))
    found_on = load_centroids(tmp_path / "out" / "clusters.safetensors").found_on
    assert 400 < found_on["vectors"] <= 0.4 * 1e5 / (4 * DIM)


def test_a_corpus_that_grew_needs_a_decision(tmp_path: Path) -> None:
    topics_file(tmp_path, 30)
    run_steps(cluster_job(tmp_path))
    before = (tmp_path / "out" / "clusters.safetensors").read_bytes()
    topics_file(tmp_path, 30, "b/y")
    with pytest.raises(ConfigError, match="found on other embeddings: 1 files then, 2 now"):
        centroids_to_find(cluster_job(tmp_path))
    with pytest.raises(ConfigError, match="n_clusters: 3 in the file, 2 asked for"):
        centroids_to_find(cluster_job(tmp_path, n_clusters=2))
    old = cluster_job(tmp_path, n_clusters="auto", centroids=tmp_path / "out" / "clusters.safetensors")
    assert [report.status for report in run_steps(old)] == ["skipped", "clustered"]
    assert (tmp_path / "out" / "clusters.safetensors").read_bytes() == before
    assert centroids_to_find(cluster_job(tmp_path, overwrite=True)) is not None


def stated_encoder(path: Path, weights: str, source: Path = Path("/y/x")) -> None:
    """Makes a file state an encoder and a source."""
    n_bytes = source.stat().st_size if source.exists() else 1
    facts = {
        "source": {
            **{"path": source.name, "folder": str(source.parent), "bytes": n_bytes},
            **{"mtime_ns": 1, "sha256": weights},
        },
        "request": {"max_line_bytes": 1 << 20, "id_key": None, "weights_sha256": weights, "text_keys": ["text"]},
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
    work = centroids_work(job)
    run(work.samples())
    with pytest.raises(ConfigError, match="were made by different encoders"):
        run(work.workload())


def test_embeddings_of_two_widths_are_refused(tmp_path: Path) -> None:
    topics_file(tmp_path, 30, "x")
    write_vectors(tmp_path / "out/embeddings/y.h5", np.ones((9, 5), np.float32))
    job = cluster_job(tmp_path)
    work = centroids_work(job)
    run(work.samples())
    with pytest.raises(ConfigError, match=r"of width 16 and .*y\.h5 of width 5"):
        run(work.workload())


def test_a_file_that_comes_while_centroids_are_found_changes_nothing(tmp_path: Path) -> None:
    topics_file(tmp_path, 3_000, "x")
    steps = course_of(cluster_job(tmp_path, n_clusters=2))  # a sample of a fifth of the documents
    run(next(steps))
    topics_file(tmp_path, 9_000, "y")
    run(next(steps))
    found_on = load_centroids(tmp_path / "out" / "clusters.safetensors").found_on
    assert (found_on["documents"], found_on["corpus"]["files"]) == (3_000, 1)
    assert [report.documents for report in run(next(steps))] == [3_000, 9_000]
    with pytest.raises(ConfigError, match="found on other embeddings: 1 files then, 2 now"):
        next(course_of(cluster_job(tmp_path, n_clusters=2)))


def test_without_a_sample_the_advice_is_not_to_embed_again(tmp_path: Path) -> None:
    topics_file(tmp_path, 30)
    with pytest.raises(ConfigError, match="none of 1 files has a sample of its present version; run"):
        run(centroids_work(cluster_job(tmp_path)).workload())


def test_a_file_without_a_sample_is_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    topics_file(tmp_path, 30, "x")
    topics_file(tmp_path, 30, "y")
    (tmp_path / "out/embeddings/broken.h5").write_bytes(b"no HDF5")
    work = centroids_work(cluster_job(tmp_path))
    for file in work.files[1:]:
        work.samples().work.run(file)
    run(work.workload())
    assert (
        "centroids are found without 1 file that have no sample, as sampling failed, such as broken.h5" in caplog.text
    )
    found_on = load_centroids(tmp_path / "out" / "clusters.safetensors").found_on
    assert (found_on["files_left_out"], found_on["corpus"]["files"], found_on["documents"]) == (1, 3, 60)


def without_texts(folder: Path, name: str = "x") -> Path:
    """Writes a file of embeddings whose texts are in a source of one line for each document; returns the source."""
    source = folder / "corpus" / f"{name}.jsonl"
    source.parent.mkdir(exist_ok=True)
    lines = [f'{{"text": "The {TOPICS[i % 3]} and the {WORDS[TOPICS[i % 3]]}."}}\n'.encode() for i in range(30)]
    source.write_bytes(b"".join(lines))
    path = folder / f"out/embeddings/{name}.h5"
    write_vectors(path, vectors_of(np.arange(30) % 3))
    stated_encoder(path, "weights", source)
    with h5py.File(path, "r+") as file:
        file["train/source_offset"] = np.cumsum([0, *map(len, lines)])[:-1]
    return source


def test_a_source_that_cannot_be_read_leaves_the_names_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = without_texts(tmp_path)
    run_steps(cluster_job(tmp_path, source_dir=source))  # a file, in which no file can be looked up
    names = load_centroids(tmp_path / "out" / "clusters.safetensors").names
    assert [name.name for name in names] == ["cluster 0", "cluster 1", "cluster 2"]
    assert (
        f"clusters have no names from some files: the source of {tmp_path}/out/embeddings/x.h5 cannot be read: "
        in caplog.text
    )


def test_names_come_once_the_sources_are_given(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = without_texts(tmp_path)
    moved = source.parent.rename(tmp_path / "moved")
    job, centroids = cluster_job(tmp_path), tmp_path / "out" / "clusters.safetensors"
    run_steps(job)
    assert "output_keys" not in caplog.text
    assert (
        f'no names from some files: "text" is not in {tmp_path}/out/embeddings/x.h5, and the source {source} does not '
        f"exist; set params.source_dir to the folder of the sources; to name them, remove {centroids} then, and"
    ) in caplog.text
    centroids.unlink()
    assert [report.status for report in run_steps(cluster_job(tmp_path, source_dir=moved))] == ["skipped"]
    rows = [json.loads(line) for line in (tmp_path / "out" / "clusters.jsonl").read_text().splitlines()]
    assert not any(row["name"].startswith("cluster") for row in rows)


def test_a_sample_without_the_texts_of_sources_that_are_given_now_is_drawn_again(tmp_path: Path) -> None:
    moved = without_texts(tmp_path).parent.rename(tmp_path / "moved")
    for source_dir, n_texts in ((None, 0), (moved, 30)):
        work = centroids_work(cluster_job(tmp_path, source_dir=source_dir))
        run(work.samples())
        sample = load_sample(work.files[0], work.sample_request)
        assert sample is not None
        assert len(sample.texts) == n_texts


def test_examples_are_short(tmp_path: Path) -> None:
    texts = [f"{'long ' * 100}{i}" for i in range(30)]
    write_vectors(tmp_path / "out/embeddings/x.h5", vectors_of(np.arange(30) % 3), texts)
    run_steps(cluster_job(tmp_path))
    names = load_centroids(tmp_path / "out" / "clusters.safetensors").names
    assert {near.text for name in names for near in name.nearest} == {("long " * 100)[:200]}


def test_whole_numbers_are_ids(tmp_path: Path) -> None:
    path = tmp_path / "out/embeddings/x.h5"
    write_topics(path, np.arange(30) % 3)
    with h5py.File(path, "r+") as file:
        del file["train/document_id"]
        file["train/document_id"] = np.arange(100, 130)
    run_steps(cluster_job(tmp_path))
    ids = pq.read_table(tmp_path / "out/clusters/x.parquet")["document_id"].to_pylist()
    assert ids == [str(i) for i in range(100, 130)]
    names = load_centroids(tmp_path / "out" / "clusters.safetensors").names
    assert {near.document_id for name in names for near in name.nearest} < set(ids)


def test_centroids_are_found_on_the_cpu_where_a_device_has_no_float64(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    topics_file(tmp_path, 30)
    work = centroids_work(cluster_job(tmp_path, device="auto"))
    run(work.samples())
    assert [report.documents for report in run(work.workload())] == [30]


def test_each_sample_and_each_seed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "TELL_S", 0)
    for number in range(20):
        write_topics(tmp_path / f"out/embeddings/{number}.h5", np.arange(30) % 3, seed=number)
    work = centroids_work(cluster_job(tmp_path, n_clusters=50))
    run(work.samples())
    told: list[float] = []
    with heard_by(lambda each: told.append(each.share)):
        run(work.workload())
    assert told == sorted(told)
    assert 0 <= told[0] <= told[-1] == 1
    assert sum(share < 0.1 for share in told) >= 20
    assert len({share for share in told if 0.1 <= share < 0.8}) >= 50


def test_a_sample_that_memory_keeps_small_is_the_reason_for_few_clusters(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    topics_file(tmp_path, 900)
    run_steps(cluster_job(tmp_path, n_clusters=500, memory_gb=1.6e-5))
    assert "clusters instead of 500: the sample has no more than 1" in caplog.text
    assert "vectors, as params.memory_gb is too small for more" in caplog.text


def test_embeddings_of_zeros_alone_are_refused(tmp_path: Path) -> None:
    write_vectors(tmp_path / "out/embeddings/y.h5", np.zeros((9, 5), np.float32))
    job = cluster_job(tmp_path)
    work = centroids_work(job)
    run(work.samples())
    with pytest.raises(ConfigError, match="no file has an embedding other than zeros"):
        run(work.workload())


def test_a_changed_file_of_centroids_is_refused(tmp_path: Path) -> None:
    topics_file(tmp_path, 30)
    run_steps(cluster_job(tmp_path))
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
    run_steps(cluster_job(tmp_path))
    centroids = load_centroids(tmp_path / "out" / "clusters.safetensors")
    write_centroids(tmp_path / "copy", centroids)
    copy = load_centroids(tmp_path / "copy")
    assert copy.sha256 == centroids.sha256
    assert copy.cells is None is centroids.cells  # there are too few documents to divide them
    assert (copy.names, copy.found_on, copy.encoder) == (centroids.names, centroids.found_on, centroids.encoder)
