"""The clusters of the lines of an annotated file, from its file of clusters."""

from collections.abc import Iterator, Mapping
from itertools import repeat
from pathlib import Path
from typing import Any

from mlfilter_core.embedding_store.centroids import load_centroids
from mlfilter_core.embedding_store.cluster_file import NO_CLUSTER, ClusterFile
from mlfilter_core.embedding_store.layout import CLUSTER, CLUSTER_KEYS, DISTANCE, NAME
from mlfilter_core.errors import ConfigError
from mlfilter_core.verification.discrepancies import Findings


def clusters_of_lines(
    path: Path, centroids: Path, made: Mapping[str, Any], findings: Findings
) -> Iterator[Mapping[str, Any]]:
    """Returns the output keys of clusters that each line must have; none where the clusters are others.

    Args:
        path: The file of clusters.
        centroids: File of the centroids; where it is missing or another one, names are not compared.
        made: Provenance of the annotated file.
        findings: Receives the problem of other clusters.

    Raises:
        ClusterFileError: The file of clusters is broken.
        OSError: It cannot be read.
    """
    sha256 = made["request"]["clusters"]["centroids_sha256"]
    with ClusterFile(path) as file:
        if file.made["request"]["centroids_sha256"] != sha256:
            findings.add("clusters", f"has the clusters of other centroids than {path}")
        elif _content_of(file.made["embeddings"]) != _content_of(made["embeddings"]):
            findings.add("clusters", f"was made from other embeddings than {path}")
        elif file.made["documents"] != made["documents"]:
            findings.add("clusters", f"has {made['documents']:,} documents, and {path} {file.made['documents']:,}")
        else:
            clusters, distances = file.read()
            names = _names(centroids, sha256)
            keys = [key for key in CLUSTER_KEYS if key in made["request"]["output_keys"] and (key != NAME or names)]
            return (
                {key: {CLUSTER: cluster, DISTANCE: distance, NAME: names.get(cluster)}[key] for key in keys}
                for cluster, distance in zip(clusters.tolist(), distances.tolist(), strict=True)
            )
    return repeat({})


def _content_of(embeddings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in embeddings.items() if name != "mtime_ns"}  # another after a copy


def _names(centroids: Path, sha256: str) -> dict[int, str]:
    try:
        found = load_centroids(centroids)
    except ConfigError:
        return {}
    return {NO_CLUSTER: "", **{i: each.name for i, each in enumerate(found.names)}} if found.sha256 == sha256 else {}
