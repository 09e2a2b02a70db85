"""Sums over the files of clusters of a folder, and the largest clusters of their list.

Sizes of clusters come from the list: a million files with the sizes of 16,000 clusters each are too much to add up for
every report.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlfilter_core.clustering.list_clusters import read_list
from mlfilter_core.config.clustering import LIST_FILE
from mlfilter_core.run_report.facts import ClusteredFacts, ClusterFacts
from mlfilter_core.verification.stated_facts import StatedClusters
from mlfilter_core.wording import shortened

MAX_CLUSTERS = 50
N_CHARACTERS = 200  # of a text
NAME_CHARACTERS, WORD_CHARACTERS = 80, 40  # a word of an untrusted text may have thousands of letters


class ClusterTotals:
    """Adds up files of clusters, one after another.

    Attributes:
        n_files: Number of files.
    """

    def __init__(self) -> None:
        self.n_files = 0
        self._n_documents = 0
        self._no_direction = 0
        self._centroids: Counter[str] = Counter()

    def add(self, stated: StatedClusters, n_documents: int) -> None:
        """Adds a file."""
        self.n_files += 1
        self._n_documents += n_documents
        self._no_direction += stated.no_direction
        self._centroids[stated.centroids_sha256] += 1

    def facts(self, output_dir: Path) -> ClusteredFacts | None:
        """Returns the sums, with the clusters of the list in a folder; None where no file was added."""
        if not self.n_files:
            return None
        return ClusteredFacts(
            *(self.n_files, self._n_documents, self._no_direction, dict(self._centroids.most_common())),
            **_listed(output_dir / LIST_FILE),
        )


def _listed(path: Path) -> Mapping[str, Any]:
    """Returns the attributes of `ClusteredFacts` that come from the list; none where it is missing or broken."""
    try:
        found = read_list(path, MAX_CLUSTERS)
        largest = [_cluster(row) for row in found.largest]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}
    return {
        "clusters": found.clusters,
        "in_clusters": found.documents,
        "tokens": found.tokens,
        "largest": largest,
    }


def _cluster(row: Mapping[str, Any]) -> ClusterFacts:
    return ClusterFacts(
        cluster=row["cluster"],
        name=shortened(row["name"], NAME_CHARACTERS),
        words=[shortened(word, WORD_CHARACTERS) for word in row["words"]],
        documents=row["documents"],
        tokens=row["tokens"],
        mean_distance=row["mean_distance"],
        nearest=[{**near, "text": shortened(near["text"], N_CHARACTERS)} for near in row["nearest"]],
        values={
            shortened(key, WORD_CHARACTERS): {shortened(name, WORD_CHARACTERS): share for name, share in of.items()}
            for key, of in row["values"].items()
        },
    )
