"""The second step of a cluster job: the samples of all files to centroids with names."""

import hashlib
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from mlfilter_core.clustering.sample import SampleRequest
from mlfilter_core.clustering.sampled_corpus import SampledCorpus, Texts
from mlfilter_core.clustering.telling_words import TellingWords, names_from
from mlfilter_core.embedding_store.centroids import (
    Cells,
    Centroids,
    ClusterName,
    Example,
    load_centroids,
    write_centroids,
)
from mlfilter_core.errors import OutputConflictError
from mlfilter_core.files.task_files import TaskFile
from mlfilter_core.work.progress import Progress, ProgressTeller
from mlfilter_core.work.same_request import REPLACE, check_same_request
from mlfilter_core.work.workload import ReportDefaults

if TYPE_CHECKING:
    import torch

# faiss's, too: more vectors hardly change where the centres are.
VECTORS_PER_CLUSTER = 256
TEXTS_PER_CLUSTER = 100  # whose words name a cluster
# Of cells for a search: their number by the square root of the number of documents; least documents, and vectors of the
# sample, of one on average, and least cells by the number of clusters, below which there is little to gain.
CELLS_PER_ROOT, LEAST_PER_CELL, LEAST_VECTORS_PER_CELL, LEAST_PER_CLUSTER = 2, 128, 8, 2
N_EXAMPLES, EXAMPLE_CHARACTERS = 3, 200  # texts of a cluster, and how much of each: enough to see what it is about
N_VALUES = 5  # most frequent values of a key that describe a cluster
# Share of the work that is done once the samples are read, the centroids found, and the cells; estimated.
READ, FOUND, DIVIDED = 0.1, 0.75, 0.8

_log = logging.getLogger(__name__)


def automatic_clusters(n_documents: int) -> int:
    """Returns the number of clusters for a number of documents: half its square root, at least 1."""
    return max(1, round(math.sqrt(n_documents) / 2))


def cells_for(n_documents: int) -> int:
    """Returns the number of cells for a search of near-duplicates, given the number of documents.

    The more cells there are, the longer it takes to find those of a document, and the less to compare the documents
    of one. For a million documents, this number takes the least time on a CPU.
    """
    return min(round(CELLS_PER_ROOT * math.sqrt(n_documents)), n_documents // LEAST_PER_CELL)


@dataclass(frozen=True)
class CentroidsRequest:
    """What centroids are found on.

    Attributes:
        path: The file of centroids.
        n_clusters: Number of clusters; None for the automatic one.
        seed: Seed of the first centroids.
        group: Name of the HDF5 group.
        most_vectors_bytes: Most bytes of the vectors.
        corpus: Number and digest of the files of embeddings, by their names and sizes.
    """

    path: Path
    n_clusters: int | None
    seed: int
    group: str
    most_vectors_bytes: int
    corpus: Mapping[str, Any]

    def most_vectors(self, dim: int) -> int:
        """Returns the most vectors, given their width."""
        return max(1, self.most_vectors_bytes // (4 * dim))

    def provenance(self) -> dict[str, Any]:
        """Returns the settings that change the centroids."""
        return {
            "n_clusters": self.n_clusters,
            "seed": self.seed,
            "group": self.group,
            "most_vectors_bytes": self.most_vectors_bytes,
        }


@dataclass(frozen=True)
class CentroidsReport(ReportDefaults):
    """The result of finding centroids.

    Attributes:
        centroids: Name of the file.
        output: Its path.
        status: `found`, or `skipped` where they were found before.
        documents: Number of documents of the corpus.
        vectors: Number of vectors that they were found on.
        clusters: Number of clusters.
        mean_distance: Mean of 1 minus the cosine of a vector with the nearest centroid.
        seconds: Wall time; 0 where skipped.
        worker: Name of the process; empty where skipped.
        started: Start time in seconds since 1970, UTC; 0 where skipped.
    """

    PRINTED: ClassVar[Sequence[str]] = ("documents", "vectors", "clusters", "mean_distance", "seconds")
    SUMMED: ClassVar[Sequence[str]] = ()

    centroids: str
    output: str
    status: Literal["found", "skipped"]
    documents: int
    vectors: int
    clusters: int
    mean_distance: float
    seconds: float = 0.0
    worker: str = ""
    started: float = 0.0


def corpus_of(files: Iterable[TaskFile]) -> dict[str, Any]:
    """Returns the number of the files, and the digest of their names and sizes."""
    digest, n_files = hashlib.sha256(), 0
    for file in files:
        digest.update(f"{file.stem}\0{file.size()}\0".encode(errors="surrogateescape"))
        n_files += 1
    return {"files": n_files, "sha256": digest.hexdigest()}


def finished_centroids(request: CentroidsRequest) -> Centroids | None:
    """Returns the centroids of a finished step; None where they have yet to be found.

    Raises:
        ConfigError: The file is broken.
        OutputConflictError: They were found with other settings, or on other files.
    """
    if not request.path.exists():
        return None
    centroids = load_centroids(request.path)
    check_same_request(request.path, centroids.found_on["request"], request.provenance())
    before = centroids.found_on["corpus"]
    if before != request.corpus:
        raise OutputConflictError(
            f"{request.path} was found on other embeddings: {before['files']} files then, {request.corpus['files']} "
            f"now, with other names or sizes; set params.centroids to it to keep these clusters, or {REPLACE}"
        )
    return centroids


def report_of(request: CentroidsRequest, centroids: Centroids, seconds: float = 0.0) -> CentroidsReport:
    """Returns the report on centroids; `skipped` without seconds."""
    found_on = centroids.found_on
    return CentroidsReport(
        request.path.name,
        str(request.path),
        "found" if seconds else "skipped",
        found_on["documents"],
        found_on["vectors"],
        len(centroids.vectors),
        found_on["mean_distance"],
        seconds,
    )


def find_centroids_of(
    files: Sequence[TaskFile], samples: SampleRequest, request: CentroidsRequest, device: "torch.device"
) -> CentroidsReport:
    """Finds the centroids of a corpus and writes them, complete or not at all.

    Args:
        files: Files of embeddings; those without a sample are left out and counted, as their tasks have failed.
        samples: Request of the samples.
        request: Request of the centroids.
        device: Device to compute on; not MPS, which has no float64.

    Raises:
        ConfigError: There is no sample with a vector, or the files are of different encoders or widths.
        OSError: Reading or writing failed.
    """
    import torch

    from mlfilter_core.clustering.spherical_k_means import find_centroids, nearest

    started = time.monotonic()
    tell = _teller(request.path.name)
    with SampledCorpus(samples.folder) as corpus:
        vectors = corpus.read(files, samples, request.most_vectors, lambda share: tell(READ * share))
        corpus.warn(request.path)
        n_clusters = request.n_clusters or automatic_clusters(corpus.n_documents)
        on_device = torch.nn.functional.normalize(torch.from_numpy(vectors).to(device, torch.float32))
        centres = find_centroids(on_device, n_clusters, request.seed, lambda share: tell(READ + (FOUND - READ) * share))
        labels, cosines = nearest(on_device, centres, lambda share: tell(FOUND))
        if len(centres) < n_clusters:
            reason = "no more different vectors"
            wanted = min(VECTORS_PER_CLUSTER * n_clusters, corpus.n_documents)
            if len(vectors) < n_clusters and request.most_vectors(vectors.shape[1]) < wanted:
                reason = f"no more than {len(vectors)} vectors, as params.memory_gb is too small for more"
            _log.warning("%d clusters instead of %d: the sample has %s", len(centres), n_clusters, reason)
        found_on = {
            "request": request.provenance(),
            "corpus": dict(request.corpus),
            "files_left_out": corpus.n_left_out,
            "documents": corpus.n_documents,
            "vectors": len(vectors),
            "mean_distance": round(float(1 - cosines.double().mean()), 6),
        }
        cells = _cells(on_device, centres, corpus.n_documents, lambda share: tell(FOUND + (DIVIDED - FOUND) * share))
        clusters = corpus.texts.of_clusters(len(centres), labels.cpu().numpy(), 1 - cosines.cpu().numpy())
        names = name_clusters(_told(clusters, len(centres), lambda share: tell(DIVIDED + (1 - DIVIDED) * share)))
    centroids = Centroids(centres.cpu().numpy(), names, corpus.encoder.fingerprint, found_on, cells)
    write_centroids(request.path, centroids)
    return report_of(request, centroids, time.monotonic() - started)


def _cells(
    vectors: "torch.Tensor", centres: "torch.Tensor", n_documents: int, tell: Callable[[float], None]
) -> Cells | None:
    """Returns the cells of a sample, given the centres of its clusters; None where these are small enough."""
    from mlfilter_core.clustering.spherical_k_means import find_cells, nearest

    n_cells, least = (
        min(cells_for(n_documents), len(vectors) // LEAST_VECTORS_PER_CELL),
        LEAST_PER_CLUSTER * len(centres),
    )
    if n_cells < least:
        return None
    found, sizes = find_cells(vectors, n_cells, tell)
    if len(found) < least:
        return None
    clusters, _ = nearest(found, centres)
    return Cells(*(each.cpu().numpy() for each in (found, sizes, clusters)))


def name_clusters(clusters: Iterable[Texts]) -> list[ClusterName]:
    """Returns what tells each cluster from the others.

    Args:
        clusters: For each cluster, its documents that have a text, the nearest to its centre first, with their
            distances from it. They are read once, and not kept.
    """
    telling = TellingWords()
    notes: list[_Notes] = []
    for texts in clusters:
        notes.append(_Notes())
        telling.add(notes[-1].noted(texts))
    words = telling.words()
    return [
        ClusterName(name, tuple(of_it), tuple(noted.nearest), noted.values())
        for name, of_it, noted in zip(names_from(words), words, notes, strict=True)
    ]


@dataclass
class _Notes:
    """What is kept of the texts of a cluster."""

    nearest: list[Example] = field(default_factory=list)
    n_texts: int = 0
    counts: dict[str, Counter[str]] = field(default_factory=dict)

    def noted(self, texts: Texts) -> Iterator[str]:
        """Yields the beginnings of texts; keeps the first ones, shortened, and counts values."""
        for distance, text in texts:
            if len(self.nearest) < N_EXAMPLES:
                example = Example(text.document_id, round(distance, 4), text.beginning[:EXAMPLE_CHARACTERS])
                self.nearest.append(example)
            self.n_texts += 1
            for key, value in text.values.items():
                self.counts.setdefault(key, Counter())[value] += 1
            yield text.beginning

    def values(self) -> dict[str, dict[str, float]]:
        """Returns the shares of the most frequent values of each key; of equally frequent ones the first by name."""
        shown = {key: sorted(counts.items(), key=lambda of: (-of[1], of[0])) for key, counts in self.counts.items()}
        return {key: {value: round(n / self.n_texts, 4) for value, n in of[:N_VALUES]} for key, of in shown.items()}


def _told(clusters: Iterable[Texts], n_clusters: int, tell: Callable[[float], None]) -> Iterator[Texts]:
    """Yields clusters; tells the share of them that is done."""
    for number, texts in enumerate(clusters):
        yield texts
        tell((number + 1) / n_clusters)


def _teller(name: str) -> Callable[[float], None]:
    """Returns a function that tells the share of the work that is done, as often as people look."""
    teller = ProgressTeller()

    def tell(share: float) -> None:
        if teller.is_due():
            teller.tell(Progress(name, share=share))

    return tell
