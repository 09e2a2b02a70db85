"""The clusters of a corpus, joined to the rows of its files of embeddings."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlfilter_core.embedding_store.centroids import load_centroids, load_same_centroids
from mlfilter_core.embedding_store.cluster_file import NO_CLUSTER, SUFFIX, ClusterFile
from mlfilter_core.embedding_store.layout import CLUSTER, DISTANCE, NAME
from mlfilter_core.embedding_store.reader import EmbeddingFile
from mlfilter_core.embedding_store.stated_parquet import check_made_from
from mlfilter_core.errors import ClusterFileError
from mlfilter_core.files.task_files import TaskFile

NO_NAME = ""  # of NO_CLUSTER

ValuesOf = Callable[[slice], Sequence[Any] | NDArray[Any]]


@dataclass(frozen=True)
class Clusters:
    """The clusters of a corpus, as a cluster job wrote them.

    Attributes:
        folder: Folder of the files of clusters.
        centroids: File of the centroids, which has the names.
        sha256: Digest of the centroids.
    """

    folder: Path
    centroids: Path
    sha256: str

    def provenance(self) -> dict[str, Any]:
        """Returns what the clusters of the same embeddings depend on."""
        return {"centroids_sha256": self.sha256}

    def values(self, file: TaskFile, embeddings: EmbeddingFile, keys: Iterable[str]) -> dict[str, ValuesOf]:
        """Returns functions from rows to their clusters, distances or names, by key; reads all clusters of the file.

        Args:
            file: The file of embeddings.
            embeddings: The same, open.
            keys: Some of `CLUSTER_KEYS`, for the result; other keys are left out.

        Raises:
            ClusterFileError: The file of clusters is missing, broken, or belongs to other embeddings or centroids.
            ConfigError: The file of centroids was changed.
        """
        path = file.output(self.folder, SUFFIX)
        try:
            with ClusterFile(path) as of_file:
                self._check_fits(path, of_file.made, embeddings)
                clusters, distances = of_file.read()
        except FileNotFoundError:
            raise ClusterFileError(f"there is no {path}, the clusters of {embeddings.path}; cluster again") from None
        names = _names(self.centroids, self.sha256)
        is_known = (clusters >= NO_CLUSTER) & (clusters < len(names) - 1) & np.isfinite(distances)
        if not is_known.all():
            row = int(np.argmin(is_known))
            raise ClusterFileError(
                f"{path}: row {row} is in cluster {clusters[row]} at the distance {distances[row]}, and there are "
                f"{len(names) - 1} clusters; cluster again"
            )
        functions: Mapping[str, ValuesOf] = {
            CLUSTER: lambda rows: clusters[rows],
            DISTANCE: lambda rows: distances[rows],
            NAME: lambda rows: [names[cluster] for cluster in clusters[rows].tolist()],
        }
        return {key: functions[key] for key in keys if key in functions}

    def _check_fits(self, path: Path, made: Mapping[str, Any], embeddings: EmbeddingFile) -> None:
        if made["request"].get("centroids_sha256") != self.sha256:
            raise ClusterFileError(
                f"{path} is of other centroids than {self.centroids}; cluster again, or name its own file as centroids"
            )
        check_made_from(made, embeddings, lambda what: ClusterFileError(f"{path} {what}; cluster again"))


def find_clusters(folder: Path, centroids: Path) -> Clusters:
    """Returns the clusters of a folder.

    Args:
        folder: Folder of the files of clusters.
        centroids: File of the centroids that documents were assigned to.

    Raises:
        ConfigError: The file of centroids is missing or broken.
    """
    return Clusters(folder, centroids, load_centroids(centroids).sha256)


@functools.lru_cache(maxsize=1)
def _names(centroids: Path, sha256: str) -> tuple[str, ...]:
    """Returns the name of each cluster, and last, in the place -1, that of no cluster; read once per process."""
    return (*(each.name for each in load_same_centroids(centroids, sha256).names), NO_NAME)
