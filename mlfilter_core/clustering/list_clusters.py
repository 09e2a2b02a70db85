"""The last step of a cluster job: the list of clusters, with names, sizes, mean distances and examples."""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from mlfilter_core.embedding_store.centroids import Centroids
from mlfilter_core.embedding_store.cluster_file import ClusterFile
from mlfilter_core.errors import ClusterFileError
from mlfilter_core.files.new_file import open_new
from mlfilter_core.files.publishing import publish

N_THREADS = 8  # that wait for a disk
N_TOGETHER = 1000  # files; those of a million at once would take a gigabyte


class UnfinishedFileError(Exception):
    """A file of clusters is missing, or of other centroids."""


def list_clusters(files: Iterable[Path], centroids: Centroids, output: Path) -> None:
    """Writes one line for each cluster, the largest first.

    Args:
        files: All files of clusters.
        centroids: The centroids that they were made with.
        output: The list; it appears complete or not at all.

    Raises:
        ClusterFileError: A file is broken.
        UnfinishedFileError: A file is missing, or of other centroids.
        OSError: Reading or writing failed.
    """
    sizes = sizes_of(files, centroids)
    with publish(output) as temporary, open_new(temporary) as sink:
        for cluster in np.argsort(-sizes.documents, kind="stable").tolist():
            sink.write(orjson.dumps(_row(cluster, sizes, centroids), option=orjson.OPT_APPEND_NEWLINE))


@dataclass(frozen=True)
class ClusterList:
    """The content of a list, as far as it is of use for people.

    Attributes:
        clusters: Number of clusters.
        documents: Documents of all of them.
        tokens: Their tokens.
        largest: Rows of the largest clusters, the largest first.
    """

    clusters: int
    documents: int
    tokens: int
    largest: Sequence[Mapping[str, Any]]


def read_list(path: Path, n_largest: int) -> ClusterList:
    """Returns the largest clusters of a list, and the sums over all.

    Raises:
        OSError: It cannot be read.
        ValueError: It is no list of clusters.
    """
    largest: list[Mapping[str, Any]] = []
    clusters = documents = tokens = 0
    try:
        with path.open("rb") as lines:
            for row in map(orjson.loads, lines):
                clusters, documents, tokens = clusters + 1, documents + row["documents"], tokens + row["tokens"]
                largest += [row] if clusters <= n_largest else []
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is no list of clusters") from error
    return ClusterList(clusters, documents, tokens, largest)


class Sizes:
    """What is in each cluster.

    Attributes:
        documents: Number of documents of each cluster, int64 (n_clusters,).
        tokens: Number of their tokens, int64 (n_clusters,).
        distances: Sum of their distances from the centre, float64 (n_clusters,).
    """

    def __init__(self, n_clusters: int) -> None:
        self.documents, self.tokens = np.zeros(n_clusters, np.int64), np.zeros(n_clusters, np.int64)
        self.distances = np.zeros(n_clusters)

    def facts(self) -> dict[str, list[Any]]:
        """Returns documents, tokens and sum of distances of each cluster that has documents, by its number."""
        return {
            str(i): [int(self.documents[i]), int(self.tokens[i]), round(float(self.distances[i]), 6)]
            for i in np.flatnonzero(self.documents).tolist()
        }

    def add(self, facts: Mapping[str, Sequence[Any]]) -> None:
        """Adds facts as `facts` returns them.

        Raises:
            ValueError, TypeError, IndexError: They are none, or of more clusters.
        """
        for cluster, (documents, tokens, distance) in facts.items():
            self.documents[int(cluster)] += documents
            self.tokens[int(cluster)] += tokens
            self.distances[int(cluster)] += distance


def sizes_of(files: Iterable[Path], centroids: Centroids) -> Sizes:
    """Returns what is in each cluster, from what the files state.

    Raises:
        ClusterFileError: A file is broken.
        UnfinishedFileError: A file is missing, or of other centroids.
    """
    sizes = Sizes(len(centroids.vectors))
    left = iter(files)
    with ThreadPoolExecutor(N_THREADS) as threads:
        while some := list(islice(left, N_TOGETHER)):
            for path, stated in zip(some, threads.map(lambda path: _stated(path, centroids.sha256), some), strict=True):
                try:
                    sizes.add(stated)
                except (ValueError, TypeError, IndexError) as error:
                    raise ClusterFileError(f"{path}: its sizes are not those of clusters; cluster again") from error
    return sizes


def _stated(path: Path, centroids_sha256: str) -> Mapping[str, Sequence[Any]]:
    try:
        with ClusterFile(path) as file:
            made = file.made
    except FileNotFoundError as error:
        raise UnfinishedFileError(f"{path} is missing") from error
    if made["request"].get("centroids_sha256") != centroids_sha256:
        raise UnfinishedFileError(f"{path} is of other centroids")
    sizes: Mapping[str, Sequence[Any]] = made["sizes"]
    return sizes


def _row(cluster: int, sizes: Sizes, centroids: Centroids) -> dict[str, Any]:
    name, documents = centroids.names[cluster], int(sizes.documents[cluster])
    return {
        "cluster": cluster,
        "name": name.name,
        "documents": documents,
        "tokens": int(sizes.tokens[cluster]),
        "mean_distance": round(float(sizes.distances[cluster]) / documents, 4) if documents else None,
        "words": list(name.words),
        "values": dict(name.values),
        "nearest": [asdict(near) for near in name.nearest],
    }
