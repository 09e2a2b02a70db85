"""Finding and assigning clusters on the CPU, beside scikit-learn and faiss.

Random vectors around topics of very different sizes stand for embeddings. faiss takes part where it is installed.

    python benchmarks/cluster_cpu.py --json benchmarks/results/cluster_cpu.json
"""

import importlib.util
import tempfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import torch
from measure import alternate, parser, publish
from numpy.typing import NDArray
from sklearn.cluster import KMeans, MiniBatchKMeans

from mlfilter_core.clustering.assign_clusters import AssignedCentroids, ClusterRequest, cluster_file
from mlfilter_core.clustering.directions import directions
from mlfilter_core.clustering.find_centroids import VECTORS_PER_CLUSTER, automatic_clusters
from mlfilter_core.clustering.spherical_k_means import find_centroids, nearest
from mlfilter_core.embedding_store.centroids import Centroids, ClusterName
from mlfilter_core.embedding_store.reader import EmbeddingFile
from mlfilter_core.files.task_files import TaskFile

Vectors = NDArray[np.float32]


def main() -> None:
    """Times each way of finding centroids, then the assignment of a file, and prints the figures."""
    options = parser(__doc__)
    options.add_argument("--documents", type=int, default=100_000)
    options.add_argument("--width", type=int, default=384)
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    vectors = mixture(arguments.documents, arguments.width)
    k = automatic_clusters(len(vectors))
    found: dict[str, Vectors] = {}
    ways = ways_of(vectors, k, found)
    seconds = alternate(arguments.rounds, ways)
    figures = {f"{name}_s": taken for name, taken in seconds.items()}
    distances = {name: mean_distance(vectors, centroids) for name, centroids in found.items()}
    figures |= {f"{name}_mean_distance": distance for name, distance in distances.items()}
    figures["distance_vs_scikit_learn"] = distances["ours"] / distances["scikit_learn"]
    figures |= assignment(vectors, found["ours"], arguments.rounds)
    facts = {"documents": str(len(vectors)), "width": str(arguments.width), "clusters": str(k)}
    publish(figures, facts | {"threads": str(arguments.threads)}, arguments.json)


def mixture(n: int, width: int) -> Vectors:
    """Returns vectors of unit length around topics, float32 (n, width)."""
    numbers = np.random.default_rng(0)
    n_topics = max(1, n // 200)
    shares = numbers.pareto(1.0, n_topics) + 0.1
    centres = numbers.standard_normal((n_topics, width), np.float32)
    vectors = centres[numbers.choice(n_topics, n, p=shares / shares.sum())]
    vectors += 0.7 * numbers.standard_normal((n, width), np.float32)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def ways_of(vectors: Vectors, k: int, found: dict[str, Vectors]) -> dict[str, Callable[[], None]]:
    """Returns functions that find k centroids and put them, of any length, into `found`."""
    sample = torch.from_numpy(vectors[: k * VECTORS_PER_CLUSTER])

    def ours() -> None:
        found["ours"] = find_centroids(sample, k, seed=0).numpy()

    def scikit_learn() -> None:
        found["scikit_learn"] = KMeans(k, n_init=1, random_state=0).fit(vectors).cluster_centers_

    def mini_batches() -> None:
        fitted = MiniBatchKMeans(k, n_init=1, batch_size=4096, random_state=0).fit(vectors)
        found["mini_batches"] = fitted.cluster_centers_

    ways = {"ours": ours, "scikit_learn": scikit_learn, "mini_batches": mini_batches}
    if importlib.util.find_spec("faiss") is not None:
        import faiss

        def of_faiss() -> None:
            faiss.omp_set_num_threads(torch.get_num_threads())
            fitted = faiss.Kmeans(vectors.shape[1], k, niter=25, spherical=True, seed=0)
            fitted.train(vectors)
            found["faiss"] = fitted.centroids

        ways["faiss"] = of_faiss
    return ways


def mean_distance(vectors: Vectors, centroids: Vectors) -> float:
    """Returns the mean of 1 minus the cosine of each vector with its nearest centroid."""
    directed = torch.nn.functional.normalize(torch.from_numpy(np.asarray(centroids, np.float32)))
    return float(1 - nearest(torch.from_numpy(vectors), directed)[1].double().mean())


def assignment(vectors: Vectors, centroids: Vectors, rounds: int) -> dict[str, float]:
    """Returns rates of assigning a file, HDF5 to Parquet, beside its reading and the bare products."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with h5py.File(folder / "x.h5", "w") as file:
            file.create_dataset("train/embeddings", data=vectors, chunks=(680, vectors.shape[1]), fletcher32=True)
        names = [ClusterName("")] * len(centroids)
        assigned = AssignedCentroids(Centroids(centroids, names, {}, {}), torch.device("cpu"))
        request = ClusterRequest(folder / "clusters", "train", "")

        def assign() -> None:
            cluster_file(TaskFile("x.h5", "x", folder), request, assigned)

        def read() -> None:
            with EmbeddingFile(folder / "x.h5", "train") as file:
                for _ in directions(file):
                    pass

        def products() -> None:
            rows, centres = torch.from_numpy(vectors), torch.from_numpy(centroids).T
            for start in range(0, len(vectors), 8192):
                rows[start : start + 8192] @ centres

        seconds = alternate(rounds, {"assign": assign, "read": read, "products": products})
    rates = {f"{name}_rows_per_s": len(vectors) / taken for name, taken in seconds.items()}
    return {**rates, "assign_share_of_slowest": max(seconds["read"], seconds["products"]) / seconds["assign"]}


if __name__ == "__main__":
    main()
