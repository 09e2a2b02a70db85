"""Files of embeddings of documents about a few topics, whose clusters are known."""

from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from mlfilter_core.clustering.work import CentroidsWork, centroids_to_find
from mlfilter_core.config.clustering import ClusterJob
from mlfilter_core.config.execution import Job
from mlfilter_core.job_kinds import course_of
from mlfilter_core.work.workload import FileReport, Workload

DIM = 16
WORDS = {"bakery": "bread flour oven", "sailing": "mast anchor harbour", "chess": "pawn bishop rook"}
TOPICS = tuple(WORDS)


def vectors_of(topics: NDArray[np.int64], seed: int = 0, spread: float = 0.1) -> NDArray[np.float32]:
    """Returns embeddings, float32 (n, DIM), of unit length, around the axis of each document's topic."""
    noise = np.random.default_rng(seed).standard_normal((len(topics), DIM)) * spread
    vectors = np.eye(DIM)[topics] + noise
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def write_topics(
    path: Path, topics: NDArray[np.int64], seed: int = 0, languages: Sequence[str] | None = None
) -> NDArray[np.float32]:
    """Writes a file of embeddings with ids, texts and numbers of tokens, as another tool would; returns them."""
    vectors = vectors_of(topics, seed)
    texts = [f"The {TOPICS[topic]} and the {WORDS[TOPICS[topic]]}." for topic in topics.tolist()]
    write_vectors(path, vectors, texts)
    if languages is not None:
        with h5py.File(path, "a") as file:
            file["train/index/language"] = list(languages)
    return vectors


def write_vectors(path: Path, vectors: NDArray[np.floating], texts: Sequence[str] | None = None) -> None:
    """Writes a file of embeddings as another tool would."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["train/embeddings"] = vectors
        file["train/document_id"] = [f"{path.stem}-{i}" for i in range(len(vectors))]
        file["train/n_tokens"] = np.arange(1, len(vectors) + 1, dtype=np.int32)
        if texts is not None:
            file["train/index/text"] = list(texts)


def cluster_job(folder: Path, **params: object) -> ClusterJob:
    """Returns a job over the embeddings of `folder/out/embeddings`; parameters override the defaults."""
    defaults = {
        "embeddings_directory": folder / "out" / "embeddings",
        "output_dir": folder / "out",
        "n_clusters": len(TOPICS),
        "device": "cpu",
    }
    return ClusterJob.model_validate({"params": {**defaults, **params}})


def run_steps(job: Job) -> list[FileReport]:
    """Runs all steps of a job; returns the reports of its files."""
    *_, reports = map(run, course_of(job))
    return reports


def centroids_work(job: ClusterJob) -> CentroidsWork:
    """Returns the work of finding centroids, which are not found yet."""
    work = centroids_to_find(job)
    assert work is not None
    return work


def run(workload: Workload[FileReport]) -> list[FileReport]:
    workload.work.check(workload.files)
    workload.work.prepare(workload.files)
    reports = [workload.work.run(file) for file in workload.files]
    workload.work.conclude()
    return reports
