"""The last step of a cluster job: the list of clusters, with names, sizes and examples."""

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
from mlfilter_core.files.new_file import open_new
from mlfilter_core.files.publishing import publish

N_THREADS = 8  # that wait for a disk
N_TOGETHER = 1000  # files; those of a million at once would take a gigabyte


def list_clusters(files: Iterable[Path], centroids: Centroids, output: Path) -> None:
    """Writes one line for each cluster, the largest first: number, name, words, documents, tokens, nearest documents.

    Args:
        files: All files of clusters.
        centroids: The centroids that they were made with.
        output: The list; it appears complete or not at all.

    Raises:
        ClusterFileError: A file is broken.
        FileNotFoundError: A file is missing.
        OSError: Reading or writing failed.
    """
    sizes = sizes_of(files, len(centroids.vectors))
    with publish(output) as temporary, open_new(temporary) as sink:
        for cluster in np.argsort(-sizes[:, 0], kind="stable").tolist():
            sink.write(
                orjson.dumps(_row(cluster, sizes[cluster].tolist(), centroids), option=orjson.OPT_APPEND_NEWLINE)
            )


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


def sizes_of(files: Iterable[Path], n_clusters: int) -> "np.ndarray[Any, np.dtype[np.int64]]":
    """Returns documents and tokens of each cluster, int64 (n_clusters, 2), from what the files state."""
    sizes = np.zeros((n_clusters, 2), np.int64)
    left = iter(files)
    with ThreadPoolExecutor(N_THREADS) as threads:
        while some := list(islice(left, N_TOGETHER)):
            for stated in threads.map(_stated, some):
                for cluster, of_cluster in stated.items():
                    sizes[int(cluster)] += of_cluster
    return sizes


def _stated(path: Path) -> dict[str, list[int]]:
    with ClusterFile(path) as file:
        return dict(file.made["sizes"])


def _row(cluster: int, size: list[int], centroids: Centroids) -> dict[str, Any]:
    name = centroids.names[cluster]
    return {
        "cluster": cluster,
        "name": name.name,
        "documents": size[0],
        "tokens": size[1],
        "words": list(name.words),
        "nearest": [asdict(near) for near in name.nearest],
    }
