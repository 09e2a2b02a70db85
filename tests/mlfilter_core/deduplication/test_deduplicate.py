"""A whole deduplication job, beside a search of all pairs."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from mlfilter_core.deduplication import bounds as bounds_module
from mlfilter_core.deduplication import distribute as distribute_module
from mlfilter_core.deduplication import edges as edges_module
from mlfilter_core.deduplication import pairs as pairs_module
from mlfilter_core.deduplication.borders import visits
from mlfilter_core.deduplication.work import deduplicate_workload, groups_to_find
from mlfilter_core.embedding_store.centroids import load_centroids, write_centroids
from mlfilter_core.embedding_store.layout import TEXT_HASH
from mlfilter_core.errors import AnnotationError, ConfigError, EmbeddingFileError, OutputConflictError
from tests.mlfilter_core.clustering.topics import cluster_job, run, run_steps, write_vectors
from tests.mlfilter_core.deduplication.corpora import (
    Vectors,
    deduplication_job,
    groups_by_all_pairs,
    groups_found,
    planted,
    rows_of,
    write_corpus,
)

N, N_CLUSTERS = 1_500, 12


@pytest.mark.parametrize("threshold", [0.8, 0.9, 0.97])
@pytest.mark.parametrize(("small", "n_clusters"), [(False, N_CLUSTERS), (True, N_CLUSTERS), (True, 2)])
def test_the_groups_are_those_of_a_search_of_all_pairs(
    tmp_path: Path, threshold: float, small: bool, n_clusters: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if small:  # many slices, blocks, reductions and buckets, each with bounds of its cosines
        monkeypatch.setattr(distribute_module, "SLICE_BYTES", 20_000)
        monkeypatch.setattr(edges_module, "MOST_EDGES", 10)
        monkeypatch.setattr(pairs_module, "BLOCK_COSINES", 500)
        monkeypatch.setattr(bounds_module, "SAMPLED", 20)
        monkeypatch.setattr(bounds_module, "WORTHWHILE", 10)
    vectors = planted(N, 600)
    write_corpus(tmp_path, vectors, n_clusters=n_clusters)
    cells = load_centroids(tmp_path / "out/clusters.safetensors").cells
    assert (cells is None) == (n_clusters == N_CLUSTERS)  # two clusters are too large to be searched
    memory_gb = 1e-4 if small else 4
    reports = run_steps(deduplication_job(tmp_path, threshold=threshold, memory_gb=memory_gb))
    expected = groups_by_all_pairs(vectors, threshold)
    assert len(expected) > 30
    assert groups_found(tmp_path) == expected
    n_duplicates = sum(len(group) - 1 for group in expected)
    assert sum(report.documents - report.kept for report in reports) == n_duplicates
    summary = json.loads((tmp_path / "out/duplicates.json").read_text())
    assert (summary["documents"], summary["duplicates"], summary["groups"]) == (N, n_duplicates, len(expected))
    # All documents are in the sample of so small a corpus, and the search misses none of their pairs.
    n_pairs = 2 * int(np.triu(vectors @ vectors.T >= threshold - 1e-6, 1).sum())  # each of two is in the sample
    assert summary["recall"] == {"pairs": n_pairs, "found": n_pairs}
    assert not (tmp_path / "out/duplicates/.rows").exists()


def test_every_duplicate_is_connected_by_a_pair_that_is_similar_enough(tmp_path: Path) -> None:
    vectors = planted(N, 600)
    write_corpus(tmp_path, vectors, n_clusters=N_CLUSTERS)
    run_steps(deduplication_job(tmp_path))
    rows = rows_of(tmp_path)
    starts = {"x0.h5": 0, "x1.h5": 500, "x2.h5": 1000}
    for i, row in enumerate(rows):
        if row["duplicate_of"] is None:
            assert set(row.values()) == {None, row["document_id"]}
            continue
        kept = rows[starts[row["duplicate_of_file"]] + row["duplicate_of_row"]]
        assert (kept["document_id"], kept["duplicate_of"]) == (row["duplicate_of"], None)
        near = starts[row["near_file"]] + row["near_row"]
        assert (rows[near]["duplicate_of"] or rows[near]["document_id"]) == row["duplicate_of"]
        assert row["cosine"] == pytest.approx(float(vectors[i] @ vectors[near]), abs=1e-5)
        assert row["cosine"] >= 0.9 - 1e-6


@pytest.mark.parametrize("neighbours", [0, 1])
@pytest.mark.parametrize("n_clusters", [N_CLUSTERS, 2])  # two are divided into cells
def test_with_few_neighbours_pairs_across_borders_are_missed_and_the_run_says_how_many(
    tmp_path: Path, n_clusters: int, neighbours: int
) -> None:
    vectors = planted(N, 600)
    vectors[7] = 0  # has no cell
    write_corpus(tmp_path, vectors, n_clusters=n_clusters)
    (first, *_) = run_steps(deduplication_job(tmp_path, threshold=0.8, neighbours=neighbours))
    recall = json.loads((tmp_path / "out/duplicates.json").read_text())["recall"]
    n_pairs, n_found = pairs_compared(vectors, tmp_path / "out/clusters.safetensors", 0.8, neighbours)
    assert recall == {"pairs": 2 * n_pairs, "found": 2 * n_found}  # every document is in the sample
    assert 0 < n_found < n_pairs
    assert any(f"of the {recall['pairs']:,} pairs" in remark for remark in first.remarks_on([first]))


def pairs_compared(vectors: Vectors, centroids: Path, threshold: float, neighbours: int) -> tuple[int, int]:
    """Returns the number of similar pairs, and of those with a document that is in, or visits, the other's cell."""
    centres = load_centroids(centroids).searched.vectors
    homes, visitors, visited = visits(*map(torch.from_numpy, (vectors, centres)), threshold, neighbours)
    cells = [{home} for home in homes.tolist()]
    for visitor, cell in zip(visitors.tolist(), visited.tolist(), strict=True):
        cells[visitor].add(cell)
    pairs = np.argwhere(np.triu(vectors @ vectors.T >= threshold - 1e-6, 1)).tolist()
    n_found = sum(int(homes[one]) in cells[other] or int(homes[other]) in cells[one] for one, other in pairs)
    return len(pairs), n_found


def test_nearly_all_pairs_of_a_large_family_of_near_duplicates_are_compared(tmp_path: Path) -> None:
    numbers = np.random.default_rng(0)
    vectors = numbers.standard_normal((2_400, 384))
    family = numbers.standard_normal(384) + 0.27 * numbers.standard_normal((2_400, 384))  # cosines of some 0.93
    mixed = numbers.permutation(np.concatenate([vectors, family])).astype(np.float32)
    write_corpus(tmp_path, mixed, n_clusters=4)
    assert load_centroids(tmp_path / "out/clusters.safetensors").cells is not None
    run_steps(deduplication_job(tmp_path))
    recall = json.loads((tmp_path / "out/duplicates.json").read_text())["recall"]
    assert recall["found"] > 0.98 * recall["pairs"] > 1_000_000


def test_ten_thousand_copies_of_a_page_are_one_group(tmp_path: Path) -> None:
    numbers = np.random.default_rng(0)
    page = np.ones(16) + 0.02 * numbers.standard_normal((10_000, 16))
    write_corpus(tmp_path, page.astype(np.float32), n_clusters=2)
    run_steps(deduplication_job(tmp_path))
    assert [len(group) for group in groups_found(tmp_path)] == [10_000]
    (largest,) = json.loads((tmp_path / "out/duplicates.json").read_text())["largest"]
    assert largest["documents"] == 10_000
    assert [document["cosine"] is None for document in largest["shown"]] == [True, False, False, False, False]


@pytest.mark.parametrize(("prefer", "kept"), [("first", "x0-0"), ("longest", "x1-1"), ("best", "x0-1")])
def test_the_document_to_keep_is_chosen(tmp_path: Path, prefer: str, kept: str) -> None:
    for name in ("x0", "x1"):
        write_vectors(tmp_path / f"out/embeddings/{name}.h5", np.ones((2, 4), np.float32))
        lines = [{"document_id": f"{name}-{i}", "score_quality": score} for i, score in enumerate((1.5, None))]
        if name == "x0":
            lines[1]["score_quality"] = 2
        path = tmp_path / f"out/annotated_data/{name}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with h5py.File(tmp_path / "out/embeddings/x1.h5", "r+") as file:
        file["train/n_tokens"][1] = 100
    run_steps(cluster_job(tmp_path, n_clusters=1))
    score = {"score": "quality", "annotated_directory": tmp_path / "out/annotated_data"} if prefer == "best" else {}
    run_steps(deduplication_job(tmp_path, prefer=prefer, **score))
    rows = rows_of(tmp_path, ["x0", "x1"])
    assert [row["document_id"] for row in rows if row["duplicate_of"] is None] == [kept]
    assert {row["duplicate_of"] for row in rows} == {None, kept}
    if prefer == "best":
        (tmp_path / "out/annotated_data/x1.jsonl").write_text('{"score_quality": 3.25}\n' * 2)
        with pytest.raises(ConfigError, match="was found on other scores"):
            groups_to_find(deduplication_job(tmp_path, prefer=prefer, **score))


def test_the_annotated_lines_of_kept_documents_are_written(tmp_path: Path) -> None:
    write_vectors(tmp_path / "out/embeddings/x0.h5", np.eye(3, dtype=np.float32)[[0, 1, 0, 2]])
    path = tmp_path / "out/annotated_data/x0.jsonl"
    path.parent.mkdir()
    path.write_text("".join(f'{{"document_id": "x0-{i}",  "score_quality": {i}.50}}\n' for i in range(4)))
    run_steps(cluster_job(tmp_path))
    job = deduplication_job(tmp_path, annotated_directory=path.parent, write_documents=True)
    (report,) = run_steps(job)
    lines = path.read_text().splitlines(keepends=True)
    assert (tmp_path / "out/deduplicated/x0.jsonl").read_text() == "".join(lines[i] for i in (0, 1, 3))
    assert (report.documents, report.kept, report.duplicates) == (4, 3, 1)
    (again,) = run(deduplicate_workload(job))
    assert again.status == "skipped"
    path.write_text("".join(lines[:3]))
    with pytest.raises(OutputConflictError, match=r"has lines of another version of .*annotated_data/x0\.jsonl"):
        run(deduplicate_workload(job))
    for name in ("duplicates", "deduplicated"):
        (tmp_path / "out" / name / ("x0.parquet" if name == "duplicates" else "x0.jsonl")).unlink()
    with pytest.raises(AnnotationError, match=r"has 3 lines, and .* 4 rows"):
        run(deduplicate_workload(job))


def test_equal_texts_are_duplicates_without_any_search(tmp_path: Path) -> None:
    for name, hashes in (("x0", [7, 8, 7]), ("x1", [9, 8, 2**64 - 1])):
        path = tmp_path / f"out/embeddings/{name}.h5"
        write_vectors(path, np.eye(6, dtype=np.float32)[:3] if name == "x0" else np.eye(6, dtype=np.float32)[3:])
        with h5py.File(path, "r+") as file:
            file[f"train/{TEXT_HASH}"] = np.array(hashes, np.uint64)
    run_steps(deduplication_job(tmp_path, threshold="exact", clusters_directory=None))
    assert groups_found(tmp_path, ["x0", "x1"]) == [{0, 2}, {1, 4}]
    assert {row["cosine"] for row in rows_of(tmp_path, ["x0", "x1"])} == {None}
    assert json.loads((tmp_path / "out/duplicates.json").read_text())["recall"] is None


def test_equal_texts_are_duplicates_also_where_their_embeddings_are_far_apart(tmp_path: Path) -> None:
    path = tmp_path / "out/embeddings/x0.h5"
    write_vectors(path, np.eye(4, dtype=np.float32)[[0, 1, 2, 2]])
    with h5py.File(path, "r+") as file:
        file[f"train/{TEXT_HASH}"] = np.array([1, 1, 3, 4], np.uint64)
    run_steps(cluster_job(tmp_path))
    run_steps(deduplication_job(tmp_path))
    assert groups_found(tmp_path, ["x0"]) == [{0, 1}, {2, 3}]
    assert [row["cosine"] for row in rows_of(tmp_path, ["x0"])] == [None, None, None, pytest.approx(1)]


def test_files_without_hashes_cannot_be_deduplicated_by_them(tmp_path: Path) -> None:
    write_vectors(tmp_path / "out/embeddings/x0.h5", np.eye(4, dtype=np.float32))
    with pytest.raises(EmbeddingFileError, match=f"has no {TEXT_HASH}"):
        run_steps(deduplication_job(tmp_path, threshold="exact", clusters_directory=None))


@pytest.mark.parametrize("kind", ["float16", "float64", "int8", "unnormalised", "chunks"])
def test_embeddings_of_any_kind_are_compared_by_their_directions(tmp_path: Path, kind: str) -> None:
    vectors = planted(200, 60, seed=3)
    path = tmp_path / "out/embeddings/x0.h5"
    stored = vectors * np.linspace(0.5, 20, len(vectors))[:, None] if kind == "unnormalised" else vectors
    write_vectors(path, stored.astype(kind if kind.startswith("float") else np.float32))
    with h5py.File(path, "r+") as file:
        if kind == "int8":
            del file["train/embeddings"]
            scales = np.abs(vectors).max(axis=1) / 127
            file["train/embeddings"] = np.round(vectors / scales[:, None]).astype(np.int8)
            file["train/embedding_scale"] = scales.astype(np.float32)
        if kind == "chunks":  # two for each document, whose mean has its direction
            del file["train/embeddings"]
            away = np.roll(vectors, 1, axis=1)
            file["train/embeddings"] = np.stack([vectors + away, vectors - away], axis=1).reshape(-1, vectors.shape[1])
            file["train/first_chunk"] = np.arange(0, 2 * len(vectors), 2)
    run_steps(cluster_job(tmp_path))
    run_steps(deduplication_job(tmp_path))
    if kind == "chunks":
        lengths = np.linalg.norm(np.stack([vectors + away, vectors - away]), axis=2, keepdims=True)
        vectors = np.mean(np.stack([vectors + away, vectors - away]) / lengths, axis=0).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    if kind == "int8":
        with h5py.File(path) as file:
            vectors = file["train/embeddings"][:].astype(np.float32)
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    expected = groups_by_all_pairs(vectors.astype(np.float16).astype(np.float32) if kind == "float16" else vectors, 0.9)
    assert len(expected) > 5
    assert groups_found(tmp_path, ["x0"]) == expected


def test_embeddings_of_zeros_are_no_duplicates_of_each_other(tmp_path: Path) -> None:
    write_vectors(tmp_path / "out/embeddings/x0.h5", np.concatenate([np.zeros((3, 4)), np.eye(4)]).astype(np.float32))
    run_steps(cluster_job(tmp_path))
    (report,) = run_steps(deduplication_job(tmp_path))
    assert report.kept == 7


def test_an_empty_file_and_a_corpus_without_duplicates(tmp_path: Path) -> None:
    write_vectors(tmp_path / "out/embeddings/x0.h5", np.empty((0, 4), np.float32))
    write_vectors(tmp_path / "out/embeddings/x1.h5", np.eye(4, dtype=np.float32))
    run_steps(cluster_job(tmp_path))
    reports = run_steps(deduplication_job(tmp_path))
    assert [(report.documents, report.kept) for report in reports] == [(0, 0), (4, 4)]
    assert any("the share of pairs found is unknown" in remark for remark in reports[0].remarks_on(reports))


def test_finished_groups_are_found_again_only_where_something_differs(tmp_path: Path) -> None:
    write_corpus(tmp_path, planted(200, 60))
    job = deduplication_job(tmp_path)
    run_steps(job)
    before = {path: path.read_bytes() for path in (tmp_path / "out/duplicates").iterdir()}
    assert groups_to_find(job) is None
    for other in ({"threshold": 0.95}, {"prefer": "longest"}, {"neighbours": 3}):
        with pytest.raises(ConfigError, match="overwrite"):
            groups_to_find(deduplication_job(tmp_path, **other))
        assert groups_to_find(deduplication_job(tmp_path, overwrite=True, **other)) is not None
    (tmp_path / "out/duplicates.arrow").unlink()
    run_steps(job)
    assert {path: path.read_bytes() for path in (tmp_path / "out/duplicates").iterdir()} == before
    write_vectors(tmp_path / "out/embeddings/x9.h5", planted(20, 0))
    with pytest.raises(ConfigError, match="3 files then, 4 now"):
        groups_to_find(job)


def test_a_file_that_was_made_again_is_refused(tmp_path: Path) -> None:
    write_corpus(tmp_path, planted(200, 60))
    job = deduplication_job(tmp_path)
    run_steps(job)
    path = tmp_path / "out/embeddings/x1.h5"
    with h5py.File(path, "r+") as file:
        file["train/embeddings"][0] = file["train/embeddings"][5]
    with pytest.raises(OutputConflictError, match=r"another version of .*x1\.h5"):
        run(deduplicate_workload(job))
    (tmp_path / "out/duplicates/x1.parquet").unlink()
    with pytest.raises(EmbeddingFileError, match="made again since its duplicates were found"):
        run(deduplicate_workload(job))


def test_clusters_must_be_complete(tmp_path: Path) -> None:
    write_corpus(tmp_path, planted(200, 60))
    (tmp_path / "out/clusters.jsonl").unlink()
    with pytest.raises(ConfigError, match=r"clusters\.jsonl cannot be read .*once a cluster job has finished"):
        run_steps(deduplication_job(tmp_path))


def test_embeddings_of_another_width_are_refused(tmp_path: Path) -> None:
    write_corpus(tmp_path, planted(200, 60))
    write_vectors(tmp_path / "out/embeddings/y.h5", np.eye(4, dtype=np.float32))
    with pytest.raises(EmbeddingFileError, match="width 4, and the centroids 32"):
        run_steps(deduplication_job(tmp_path))


def test_a_threshold_that_removes_most_is_warned_about(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_corpus(tmp_path, np.ones((30, 8), np.float32))
    run_steps(deduplication_job(tmp_path))
    assert "29 of 30 documents are duplicates of others; if that is too many" in caplog.text


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"clusters_directory": None}, "a search for near-duplicates needs clusters"),
        ({"prefer": "best"}, "prefer: best goes with score"),
        ({"score": "quality"}, "prefer: best goes with score"),
        ({"prefer": "best", "score": "quality"}, "score needs annotated_directory"),
        ({"threshold": 1.5}, "less than or equal to 1"),
        ({"threshold": "exact", "clusters_directory": None, "centroids": "x"}, "centroids are those of"),
    ],
)
def test_fields_that_do_not_fit_together(tmp_path: Path, params: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        deduplication_job(tmp_path, **params)


def test_ids_of_any_type(tmp_path: Path) -> None:
    path = tmp_path / "out/embeddings/x0.h5"
    write_vectors(path, np.ones((3, 4), np.float32))
    with h5py.File(path, "r+") as file:
        del file["train/document_id"]
        file["train/document_id"] = np.array([5, 6, 7])
    run_steps(cluster_job(tmp_path))
    run_steps(deduplication_job(tmp_path))
    table = pq.read_table(tmp_path / "out/duplicates/x0.parquet")
    assert table["document_id"].to_pylist() == ["5", "6", "7"]
    assert table["duplicate_of"].to_pylist() == [None, "5", "5"]


def annotate(folder: Path, name: str, ids: list[str]) -> Path:
    """Writes annotated lines as another tool would; returns their file."""
    path = folder / f"out/annotated_data/{name}.jsonl"
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text("".join(f'{{"document_id": "{each}", "score_quality": 1.5}}\n' for each in ids))
    return path


def test_lines_in_another_order_are_refused(tmp_path: Path) -> None:
    write_vectors(tmp_path / "out/embeddings/x0.h5", np.eye(3, dtype=np.float32)[[0, 1, 0]])
    annotated = annotate(tmp_path, "x0", ["x0-2", "x0-1", "x0-0"])
    run_steps(cluster_job(tmp_path))
    job = deduplication_job(tmp_path, annotated_directory=annotated.parent, write_documents=True)
    with pytest.raises(AnnotationError, match=r"x0\.jsonl:1 is of document x0-2, and row 0 of .* is of x0-0"):
        run_steps(job)
    scored = {"prefer": "best", "score": "quality", "overwrite": True}
    with pytest.raises(AnnotationError, match="is of document x0-2"):
        run_steps(deduplication_job(tmp_path, annotated_directory=annotated.parent, **scored))


def test_what_later_steps_look_for_appears_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a kill at any moment leaves nothing that counts as finished and is not."""
    path = tmp_path / "out/embeddings/x0.h5"
    write_vectors(path, np.eye(4, dtype=np.float32))
    with h5py.File(path, "r+") as file:
        file[f"train/{TEXT_HASH}"] = np.array([7, 8, 7, 9], np.uint64)
    run_steps(cluster_job(tmp_path))
    order: list[str] = []
    replace = os.replace

    def seen(source: str, target: str, **options: Any) -> None:
        order.append(Path(target).name)
        replace(source, target, **options)

    monkeypatch.setattr(os, "replace", seen)
    run_steps(deduplication_job(tmp_path))
    assert groups_found(tmp_path, ["x0"]) == [{0, 2}]
    of_file = [name for name in order if name.startswith("x0.")]
    assert sorted(of_file[:3]) == ["x0.hashes.arrow", "x0.vectors.arrow", "x0.visits.arrow"]
    assert of_file[3] == "x0.npz"
    assert order.index("duplicates.arrow") < order.index("duplicates.json")


def test_hashes_of_an_earlier_version_of_a_file_are_not_used(tmp_path: Path) -> None:
    path = tmp_path / "out/embeddings/x0.h5"
    write_vectors(path, np.eye(4, dtype=np.float32))
    with h5py.File(path, "r+") as file:
        file[f"train/{TEXT_HASH}"] = np.array([7, 7, 7, 7], np.uint64)
    run_steps(cluster_job(tmp_path))
    work = groups_to_find(deduplication_job(tmp_path))
    assert work is not None
    run(work.steps()[0])  # the run is killed then
    write_vectors(path, np.eye(4, dtype=np.float32)[::-1])
    run_steps(deduplication_job(tmp_path))
    assert groups_found(tmp_path, ["x0"]) == []


def test_outputs_never_replace_inputs(tmp_path: Path) -> None:
    write_corpus(tmp_path, planted(60, 10))
    for name in ("annotated_directory", "source_dir"):
        for folder in (tmp_path / "out/deduplicated", tmp_path / "out/duplicates/below"):
            with pytest.raises(ConfigError, match=f"params.{name}: .* lie within each other"):
                groups_to_find(deduplication_job(tmp_path, **{name: folder}))


def test_missing_inputs_of_the_last_step_are_found_before_the_first_one(tmp_path: Path) -> None:
    write_corpus(tmp_path, planted(60, 10))
    with pytest.raises(ConfigError, match=r"there is no .*x0\.jsonl, the annotated file of .*write_documents: false"):
        groups_to_find(deduplication_job(tmp_path, annotated_directory=tmp_path / "none"))
    with pytest.raises(ConfigError, match=r"reads the sources: .* does not name its source.*write_documents: false"):
        groups_to_find(deduplication_job(tmp_path, write_documents=True))


def test_kept_documents_of_another_request_are_replaced_and_those_of_lost_embeddings_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("x0", "x1"):
        write_vectors(tmp_path / f"out/embeddings/{name}.h5", np.eye(3, dtype=np.float32))
        annotated = annotate(tmp_path, name, [f"{name}-{i}" for i in range(3)])
    run_steps(cluster_job(tmp_path))
    params = {"annotated_directory": annotated.parent, "write_documents": True}
    run_steps(deduplication_job(tmp_path, **params))
    with pytest.raises(OutputConflictError, match=r"x0\.jsonl was made by another request"):
        run_steps(deduplication_job(tmp_path, **params, compression="gzip"))
    (tmp_path / "out/embeddings/x1.h5").unlink()
    run_steps(cluster_job(tmp_path, overwrite=True))
    run_steps(deduplication_job(tmp_path, **params, compression="gzip", overwrite=True))
    files = sorted(path.name for path in (tmp_path / "out/deduplicated").iterdir())
    assert files == ["x0.jsonl.gz", "x1.jsonl"]
    assert "deduplicated/x1.jsonl: its embeddings are gone" in caplog.text
    assert "duplicates/x1.parquet: its embeddings are gone" in caplog.text


def test_a_renamed_file_makes_its_duplicates_point_to_the_new_name(tmp_path: Path) -> None:
    for name in ("x0", "x1"):
        write_vectors(tmp_path / f"out/embeddings/{name}.h5", np.eye(3, dtype=np.float32))
    run_steps(cluster_job(tmp_path))
    run_steps(deduplication_job(tmp_path))
    (tmp_path / "out/embeddings/x0.h5").rename(tmp_path / "out/embeddings/w0.h5")
    run_steps(cluster_job(tmp_path, overwrite=True))
    run_steps(deduplication_job(tmp_path, overwrite=True))
    assert {row["duplicate_of_file"] for row in rows_of(tmp_path, ["x1"])} == {"w0.h5"}


def test_a_copy_of_a_file_of_another_tool_is_the_same_file(tmp_path: Path) -> None:
    write_corpus(tmp_path, planted(60, 20))
    job = deduplication_job(tmp_path)
    run_steps(job)
    os.utime(tmp_path / "out/embeddings/x0.h5", (1, 1))
    (tmp_path / "out/duplicates/x0.parquet").unlink()
    assert [report.status for report in run(deduplicate_workload(job))] == ["deduplicated", "skipped", "skipped"]


def test_clusters_of_a_part_of_the_corpus_are_warned_about(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_corpus(tmp_path, planted(60, 10))
    write_vectors(tmp_path / "out/embeddings/y.h5", planted(9_000, 0, seed=5))
    work = groups_to_find(deduplication_job(tmp_path))
    assert work is not None
    assert "the clusters have 60 documents, and the embeddings about" in caplog.text
    search = work.request.compared.divided.search
    assert search is not None
    assert search.probe_share < 0.7


def test_a_cluster_that_does_not_fit_in_memory_is_warned_about(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_corpus(tmp_path, planted(600, 10), n_clusters=2)
    groups_to_find(deduplication_job(tmp_path, memory_gb=1e-5))
    assert "which are compared in one task and take" in caplog.text


def test_centroids_of_an_earlier_release_are_searched_by_clusters(tmp_path: Path) -> None:
    vectors = planted(N, 600)
    write_corpus(tmp_path, vectors, n_clusters=2)
    path = tmp_path / "out/clusters.safetensors"
    write_centroids(path, dataclasses.replace(load_centroids(path), cells=None))
    run_steps(deduplication_job(tmp_path))
    assert groups_found(tmp_path) == groups_by_all_pairs(vectors, 0.9)


def test_tasks_fit_in_memory_with_the_centroids_of_another_corpus(tmp_path: Path) -> None:
    vectors = planted(N, 10)
    write_corpus(tmp_path / "all", vectors, n_clusters=3)
    centroids = tmp_path / "all/out/clusters.safetensors"
    of_one_topic = vectors[np.argsort(vectors @ load_centroids(centroids).vectors[0])[-300:]]
    write_corpus(tmp_path, of_one_topic, n_clusters="auto", centroids=centroids)
    most = 200
    memory_gb = most * 4 * 32 * (1 + 8) * 2 / 10**9
    work = groups_to_find(deduplication_job(tmp_path, centroids=centroids, memory_gb=memory_gb))
    assert work is not None
    divide, compare, _ = work.steps()
    run(divide)
    assert max(report.documents for report in run(compare) if report.bucket.startswith("cells")) < 2 * most


def test_rows_that_an_earlier_release_divided_are_divided_again(tmp_path: Path) -> None:
    write_corpus(tmp_path, planted(N, 600), n_clusters=N_CLUSTERS)
    work = groups_to_find(deduplication_job(tmp_path))
    assert work is not None
    divide = work.steps()[0]
    run(divide)
    assert {report.status for report in run(divide)} == {"skipped"}
    for path in (tmp_path / "out/duplicates/.rows").rglob("*.npz"):
        rows = dict(np.load(path))
        facts = json.loads(rows["facts"].tobytes())
        facts["search"]["centroids"] = facts["search"].pop("cells")
        rows["facts"] = np.frombuffer(json.dumps(facts).encode(), np.uint8)
        np.savez(path, **rows)
    assert {report.status for report in run(divide)} == {"divided"}


def test_cells_that_change_during_a_run_are_noticed(tmp_path: Path) -> None:
    write_corpus(tmp_path, planted(N, 10), n_clusters=2)
    work = groups_to_find(deduplication_job(tmp_path))
    assert work is not None
    path = tmp_path / "out/clusters.safetensors"
    centroids = load_centroids(path)
    assert centroids.cells is not None
    other = dataclasses.replace(centroids.cells, vectors=-centroids.cells.vectors)
    write_centroids(path, dataclasses.replace(centroids, cells=other))
    with pytest.raises(ConfigError, match="was changed during the run"):
        run(work.steps()[0])
