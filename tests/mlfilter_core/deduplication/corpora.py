"""Corpora of embeddings with planted near-duplicates, and the groups that a search of all pairs finds."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mlfilter_core.config.deduplication import DeduplicationJob
from tests.mlfilter_core.clustering.topics import cluster_job, run_steps, write_vectors

Vectors = NDArray[np.float32]


def planted(n: int, n_copies: int, dim: int = 32, seed: int = 0) -> Vectors:
    """Returns vectors of unit length, float32 (n, dim), some of which are near-copies of others."""
    numbers = np.random.default_rng(seed)
    vectors = numbers.standard_normal((n, dim)) + 3 * numbers.standard_normal((n // 20, dim))[np.arange(n) % (n // 20)]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    places = numbers.permutation(n)[:n_copies]
    originals = numbers.integers(0, n, n_copies)
    noise = numbers.standard_normal((n_copies, dim))
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    vectors[places] = vectors[originals] + numbers.uniform(0, 0.6, n_copies)[:, None] * noise
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def groups_by_all_pairs(vectors: Vectors, threshold: float) -> list[set[int]]:
    """Returns the groups of at least two rows that pairs of this cosine connect, by the product of all with all."""
    group = list(range(len(vectors)))
    members = {i: {i} for i in group}
    for first, second in np.argwhere(np.triu(vectors @ vectors.T >= threshold - 1e-6, 1)).tolist():
        if group[first] != group[second]:
            moved = members.pop(group[second])
            members[group[first]] |= moved
            for row in moved:
                group[row] = group[first]
    return sorted((rows for rows in members.values() if len(rows) > 1), key=min)


def write_corpus(folder: Path, vectors: Vectors, n_files: int = 3, **params: object) -> None:
    """Writes vectors to files of embeddings in order, and clusters them."""
    for i, rows in enumerate(np.array_split(vectors, n_files)):
        write_vectors(folder / "out" / "embeddings" / f"x{i}.h5", rows)
    run_steps(cluster_job(folder, **params))


def deduplication_job(folder: Path, **params: object) -> DeduplicationJob:
    """Returns a job over the embeddings and clusters of `folder/out`; parameters override the defaults."""
    defaults = {
        "embeddings_directory": folder / "out" / "embeddings",
        "clusters_directory": folder / "out" / "clusters",
        "output_dir": folder / "out",
        "threshold": 0.9,
        "prefer": "first",
        "write_documents": False,
        "device": "cpu",
    }
    return DeduplicationJob.model_validate({"params": {**defaults, **params}})


def rows_of(folder: Path, names: Sequence[str] = ("x0", "x1", "x2")) -> list[dict[str, Any]]:
    """Returns the rows of the files of duplicates, in order."""
    tables = [pq.read_table(folder / "out" / "duplicates" / f"{name}.parquet") for name in names]
    return [row for table in tables for row in table.to_pylist()]


def groups_found(folder: Path, names: Sequence[str] = ("x0", "x1", "x2")) -> list[set[int]]:
    """Returns the groups of rows over all files, of at least two, by the files of duplicates."""
    rows = rows_of(folder, names)
    place = {row["document_id"]: i for i, row in enumerate(rows)}
    groups: dict[int, set[int]] = {}
    for i, row in enumerate(rows):
        if row["duplicate_of"] is not None:
            kept = place[row["duplicate_of"]]
            groups.setdefault(kept, {kept}).add(i)
    return sorted(groups.values(), key=min)
