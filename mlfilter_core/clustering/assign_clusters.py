"""The third step of a cluster job: the cluster of each document of a file of embeddings."""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from mlfilter_core.clustering.directions import directions
from mlfilter_core.clustering.list_clusters import Sizes, read_list
from mlfilter_core.compute.stages import Stages
from mlfilter_core.config.clustering import LIST_FILE
from mlfilter_core.embedding_store.centroids import Centroids
from mlfilter_core.embedding_store.cluster_file import NO_CLUSTER, SUFFIX, ClusterFile, Rows, write_clusters
from mlfilter_core.embedding_store.fingerprint import describe_differences, differences, fingerprint, name_of
from mlfilter_core.embedding_store.layout import DOCUMENT_ID
from mlfilter_core.embedding_store.reader import EmbeddingFile
from mlfilter_core.errors import ClusterFileError, EmbeddingFileError, OutputConflictError
from mlfilter_core.files.publishing import publish
from mlfilter_core.files.task_files import TaskFile
from mlfilter_core.files.urls import url_of
from mlfilter_core.wording import plural, share, shortened
from mlfilter_core.work.progress import Progress, ProgressTeller
from mlfilter_core.work.same_request import REPLACE, are_same_embeddings, check_same_request
from mlfilter_core.work.workload import ReportDefaults

if TYPE_CHECKING:
    import torch

N_SHOWN, SHOWN_CHARACTERS = 5, 60  # clusters at the end of a run, and letters of a name: 80 columns are enough

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClusterRequest:
    """The settings for every file of a cluster run.

    Attributes:
        output_dir: Folder of the files of clusters.
        group: Name of the HDF5 group.
        centroids_sha256: Digest of the centroids.
    """

    output_dir: Path
    group: str
    centroids_sha256: str

    def output(self, file: TaskFile) -> Path:
        return file.output(self.output_dir, SUFFIX)

    def provenance(self) -> dict[str, Any]:
        """Returns the settings that change the content of the output."""
        return {"group": self.group, "centroids_sha256": self.centroids_sha256}


@dataclass(frozen=True)
class ClusterReport(ReportDefaults):
    """The result of clustering one file.

    Attributes:
        embeddings: Path relative to the folder of embeddings.
        output: The file of clusters.
        status: `clustered`, or `skipped` where the output was finished before.
        documents: Number of documents.
        clusters: Number of clusters that they are in.
        no_direction: Number of documents in no cluster, as their embeddings are zeros.
        seconds: Wall time; 0 where skipped.
        worker: Name of the process; empty where skipped.
        started: Start time in seconds since 1970, UTC; 0 where skipped.
    """

    PRINTED: ClassVar[Sequence[str]] = ("documents", "clusters", "no_direction", "seconds", "documents/s")
    SUMMED: ClassVar[Sequence[str]] = ("documents", "no_direction")

    embeddings: str
    output: str
    status: Literal["clustered", "skipped"]
    documents: int
    clusters: int
    no_direction: int
    seconds: float = 0.0
    worker: str = ""
    started: float = 0.0

    @staticmethod
    def sample_of(reports: "Sequence[ClusterReport]") -> list[str]:
        """Returns share and name of the largest clusters of all files, if they are listed on this machine."""
        first = reports[0]
        if url_of(first.output) is not None:
            return []
        folder = Path(first.output).parents[len(Path(first.embeddings).parts) - 1]
        with suppress(FileNotFoundError):  # some files have failed, or other runs have yet to finish theirs
            found = read_list(folder.with_name(LIST_FILE), N_SHOWN)
            rows = [
                f"{share(row['documents'], found.documents):>9}  {shortened(row['name'], SHOWN_CHARACTERS)}"
                for row in found.largest
            ]
            return [f"largest of {plural(found.clusters, 'cluster')}, by documents:", *rows]
        return []


class AssignedCentroids:
    """Centroids on a device, to assign documents to."""

    def __init__(self, centroids: Centroids, device: "torch.device") -> None:
        import torch

        self.centroids = centroids
        self.vectors = torch.from_numpy(centroids.vectors).to(device)


def cluster_file(file: TaskFile, request: ClusterRequest, assigned: AssignedCentroids) -> ClusterReport:
    """Writes the cluster of each document of a file, complete or not at all.

    Args:
        file: The file of embeddings.
        request: The request of the run.
        assigned: Centroids of `request.centroids_sha256`.

    Raises:
        EmbeddingFileError: The file is broken, an embedding is not finite, or the centroids are of other embeddings.
        OSError: Reading or writing failed.
    """
    started = time.monotonic()
    output = request.output(file)
    with EmbeddingFile(file.path, request.group) as embeddings:
        check_fits(embeddings, assigned.centroids)
        made = {
            "embeddings": embeddings.identity(),
            "request": request.provenance(),
            "documents": embeddings.n_rows,
        }
        has_ids = DOCUMENT_ID in embeddings.names()
        with publish(output) as temporary, Stages("reading", "clustering") as stages:
            read = stages.run(_read(embeddings))
            write_clusters(temporary, _clustered(read, file, assigned, made), made, has_ids)
    seconds = time.monotonic() - started
    _log.info("%s: %d documents in %.1f s", file.relative, made["documents"], seconds)
    return _report(file, output, "clustered", made, seconds)


def check_fits(embeddings: EmbeddingFile, centroids: Centroids) -> None:
    """Checks that centroids are of the same encoder as a file of embeddings.

    Raises:
        EmbeddingFileError: They are not, or have another width.
    """
    dim, made_by = centroids.vectors.shape[1], fingerprint(embeddings.provenance)
    if embeddings.dim != dim:
        raise EmbeddingFileError(
            f"{embeddings.path} has embeddings of width {embeddings.dim}, and the centroids {dim}; cluster the "
            "files of one encoder"
        )
    if differences(centroids.encoder, made_by):
        raise EmbeddingFileError(
            f"{embeddings.path} is of {name_of(made_by)}, and the centroids are of {name_of(centroids.encoder)}: "
            f"{describe_differences(centroids.encoder, made_by)}; cluster the files of one encoder"
        )


def finished_clusters(file: TaskFile, request: ClusterRequest, read_content: bool) -> ClusterReport | None:
    """Returns the report of a finished output, or None where the file is not finished.

    Args:
        file: The file of embeddings.
        request: The request of this run.
        read_content: Whether to read a file whose modification time differs; otherwise it counts as not finished.

    Raises:
        OutputConflictError: The output was made from other embeddings, by another request or another tool.
    """
    output = request.output(file)
    try:
        with ClusterFile(output) as clusters:
            made = clusters.made
    except FileNotFoundError:
        return None
    except ClusterFileError as error:
        raise OutputConflictError(f"{error}; {REPLACE}") from error
    check_same_request(output, made["request"], request.provenance())
    are_same = are_same_embeddings(output, file.path, request.group, made["embeddings"], read_content)
    return None if are_same is None else _report(file, output, "skipped", made)


@dataclass(frozen=True)
class _Documents:
    """Some documents of a file: directions, ids, numbers of tokens; ids are None where they are not stored."""

    vectors: NDArray[np.float32]
    ids: list[str] | None
    tokens: NDArray[np.int64]


def _read(embeddings: EmbeddingFile) -> Iterator[_Documents]:
    has = embeddings.names()
    for rows, vectors in directions(embeddings):
        yield _Documents(
            vectors,
            embeddings.strings(DOCUMENT_ID, rows) if DOCUMENT_ID in has else None,
            embeddings.tokens(rows),
        )


def _clustered(
    read: Iterator[_Documents], file: TaskFile, assigned: AssignedCentroids, made: dict[str, Any]
) -> Iterator[Rows]:
    """Yields ids, clusters and distances of some documents at a time; adds their counts to `made` at the end."""
    import torch

    from mlfilter_core.clustering.spherical_k_means import nearest

    teller, n_done = ProgressTeller(), 0
    sizes, no_direction = Sizes(len(assigned.vectors)), 0
    for some in read:
        labels, cosines = nearest(torch.from_numpy(some.vectors).to(assigned.vectors.device), assigned.vectors)
        clusters = labels.cpu().numpy().astype(np.int32)
        distances = (1 - cosines.cpu().numpy()).astype(np.float32)
        has_none = ~some.vectors.any(axis=1)
        clusters[has_none], distances[has_none] = NO_CLUSTER, 1
        is_in_one = ~has_none
        no_direction += int(has_none.sum())
        np.add.at(sizes.documents, clusters[is_in_one], 1)
        np.add.at(sizes.tokens, clusters[is_in_one], some.tokens[is_in_one])
        np.add.at(sizes.distances, clusters[is_in_one], distances[is_in_one])
        n_done += len(clusters)
        if teller.is_due():
            teller.tell(Progress(file.name, n_done, share=n_done / made["documents"]))
        yield some.ids, clusters, distances
    made |= {"sizes": sizes.facts(), "no_direction": no_direction}


def _report(
    file: TaskFile, output: Path, status: Literal["clustered", "skipped"], made: Any, seconds: float = 0.0
) -> ClusterReport:
    return ClusterReport(
        *(file.relative, str(output), status, made["documents"], len(made["sizes"]), made["no_direction"], seconds)
    )
