"""Checks one file of clusters against its embeddings and the centroids."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlfilter_core.config.clustering import CLUSTERS_DIR
from mlfilter_core.embedding_store.centroids import load_centroids
from mlfilter_core.embedding_store.cluster_file import NO_CLUSTER, SUFFIX, ClusterFile
from mlfilter_core.embedding_store.layout import CHUNK_ROWS, CLUSTER, DOCUMENT_ID, N_TOKENS
from mlfilter_core.embedding_store.reader import EmbeddingFile
from mlfilter_core.errors import ClusterFileError
from mlfilter_core.verification.discrepancies import FileCheck, Findings
from mlfilter_core.verification.document_directions import directions_of
from mlfilter_core.verification.output_kinds import Output, OutputKind, RelatedFiles, VerifyRequest
from mlfilter_core.verification.stated_facts import StatedClusters, StatedFacts, UnreadableOutputError

AGAIN = "cluster again"
ROUNDING = 1e-4  # of a distance, on any device
BLOCK_BYTES = 64 << 20  # of cosines, and of centres, in memory at a time
NO_CENTROIDS = "against their centroids, which are not in this folder"
NO_EMBEDDINGS = "against their embeddings, which are not in this folder"


def find_clusters(relative: str) -> Output | None:
    """Returns the file of clusters that a file is."""
    if not relative.startswith(f"{CLUSTERS_DIR}/") or not relative.endswith(SUFFIX):
        return None
    return Output(relative, relative.removeprefix(f"{CLUSTERS_DIR}/").removesuffix(SUFFIX))


def evidence_of(relative: str) -> tuple[str, ...]:
    """Returns the files that `read_clusters` reads."""
    return (relative,)


def read_clusters(relative: str, request: VerifyRequest) -> StatedFacts:
    """Returns what a file of clusters states.

    Raises:
        UnreadableOutputError: It is missing or broken.
    """
    path = request.output_dir / relative
    try:
        with ClusterFile(path) as file:
            made = file.made
            clusters = StatedClusters(str(made["request"]["centroids_sha256"]), int(made["no_direction"]))
            return StatedFacts(path.stat().st_size, int(made["documents"]), clusters=clusters)
    except (ClusterFileError, OSError, ValueError, KeyError, TypeError) as error:
        raise UnreadableOutputError(str(error)) from error


def check_clusters(relative: str, request: VerifyRequest, related: RelatedFiles) -> FileCheck:
    """Checks one file of clusters; never raises for what is wrong with it.

    Args:
        relative: The file, below the output folder.
        request: Request of the verification.
        related: Candidates for its embeddings.
    """
    check = _Check(relative, request, related, Findings(request.output_dir / relative, AGAIN))
    with check.findings.collecting():
        check.run()
    path = request.output_dir / relative
    n_bytes = path.stat().st_size if request.read_content and path.exists() else 0
    return FileCheck(relative, check.findings.problems(), tuple(check.not_checked), n_bytes=n_bytes)


@dataclass
class _Check:
    """The check of one file, with its findings so far."""

    relative: str
    request: VerifyRequest
    related: RelatedFiles
    findings: Findings
    not_checked: list[str] = field(default_factory=list)

    def run(self) -> None:
        with ClusterFile(self.findings.path) as file:
            made = file.made
            n_in_clusters = sum(size[0] for size in made["sizes"].values())
            if n_in_clusters + made["no_direction"] != made["documents"]:
                self.findings.add(
                    "counts",
                    f"it states {made['documents']:,} documents, {n_in_clusters:,} in clusters and "
                    f"{made['no_direction']:,} in none",
                )
            centres = self._centres(made["request"]["centroids_sha256"])
            if not self.request.read_content:
                return
            clusters, distances = file.read()
            ids = file.ids()
        found = np.unique(clusters[clusters != NO_CLUSTER], return_counts=True)
        sizes = {str(cluster): int(n) for cluster, n in zip(*found, strict=True)}
        if sizes != {cluster: size[0] for cluster, size in made["sizes"].items()}:
            self.findings.add("sizes", "its clusters have other sizes than it states")
        with self.findings.collecting():
            self._check_rows(made, clusters, distances, ids, centres)

    def _centres(self, sha256: str) -> NDArray[np.float32] | None:
        path = self.request.output_dir / f"{CLUSTERS_DIR}.safetensors"
        if path.exists() and (centroids := load_centroids(path)).sha256 == sha256:
            return centroids.vectors
        self.not_checked.append(NO_CENTROIDS)
        return None

    def _check_rows(
        self,
        made: Mapping[str, Any],
        clusters: NDArray[np.int32],
        distances: NDArray[np.float32],
        ids: list[str] | None,
        centres: NDArray[np.float32] | None,
    ) -> None:
        group = str(made["request"]["group"])
        paths = [self.request.output_dir / path for path in self.related.outputs]
        path = next((path for path in paths if path.suffix in (".h5", ".hdf5") and path.exists()), None)
        if path is None:
            self.not_checked.append(NO_EMBEDDINGS)
            return
        with EmbeddingFile(path, group) as embeddings:
            if not embeddings.is_version(made["embeddings"], read_content=True):
                self.findings.add("embeddings", f"was made from another version of {path}")
                return
            if embeddings.n_rows != len(clusters):
                self.findings.add("rows", f"has {len(clusters)} rows, and {path} {embeddings.n_rows}")
                return
            self._check_tokens(made, clusters, embeddings)
            for rows in embeddings.slices(CHUNK_ROWS):
                if ids is not None and embeddings.strings(DOCUMENT_ID, rows) != ids[rows]:
                    self.findings.add("ids", f"rows {rows.start} to {rows.stop - 1} have the ids of other documents")
                if centres is not None:
                    self._check_distances(rows, directions_of(embeddings, rows), clusters, distances, centres)

    def _check_tokens(self, made: Mapping[str, Any], clusters: NDArray[np.int32], embeddings: EmbeddingFile) -> None:
        if N_TOKENS not in embeddings.names():
            return
        sums: Counter[str] = Counter()
        for cluster, n in zip(clusters.tolist(), embeddings.array(N_TOKENS, slice(None)).tolist(), strict=True):
            sums[str(cluster)] += n
        if any(sums[cluster] != size[1] for cluster, size in made["sizes"].items()):
            self.findings.add("tokens", "its clusters have other numbers of tokens than it states")

    def _check_distances(
        self,
        rows: slice,
        directions: NDArray[np.float64],
        clusters: NDArray[np.int32],
        distances: NDArray[np.float32],
        centres: NDArray[np.float32],
    ) -> None:
        own = clusters[rows]
        has_direction = directions.any(axis=1)
        if ((own == NO_CLUSTER) == has_direction).any() or own.max(initial=-1) >= len(centres):
            self.findings.add(CLUSTER, f"rows {rows.start} to {rows.stop - 1} have a {CLUSTER} that does not exist")
            return
        of_own = np.einsum("ij,ij->i", directions, centres[np.maximum(own, 0)].astype(np.float64))
        highest = highest_cosines(directions, centres)
        wrong = has_direction & ((np.abs(1 - of_own - distances[rows]) > ROUNDING) | (highest > of_own + ROUNDING))
        for row in (rows.start + np.flatnonzero(wrong)).tolist():
            self.findings.add("distance", f"row {row} has another nearest centre, or another distance from it")


def highest_cosines(directions: NDArray[np.float64], centres: NDArray[np.float32]) -> NDArray[np.float64]:
    """Returns the highest cosine of each direction with a centre, in blocks of centres that fit in `BLOCK_BYTES`."""
    highest = np.full(len(directions), -np.inf)
    step = max(1, BLOCK_BYTES // (8 * max(directions.shape)))
    for start in range(0, len(centres), step):
        cosines = directions @ centres[start : start + step].T.astype(np.float64)
        np.maximum(highest, cosines.max(axis=1), out=highest)
    return highest


FILES_OF_CLUSTERS = OutputKind(
    "files of clusters",
    find_clusters,
    read_clusters,
    check_clusters,
    made_from="embed",
    again=AGAIN,
    evidence=evidence_of,
)
