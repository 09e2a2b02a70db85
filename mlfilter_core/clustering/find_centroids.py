"""The second step of a cluster job: the samples of all files to centroids with names."""

import hashlib
import heapq
import logging
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from mlfilter_core.clustering.sample import Sample, SampleRequest, load_sample
from mlfilter_core.clustering.telling_words import TellingWords, names_from
from mlfilter_core.embedding_store.centroids import Centroids, ClusterName, Example, load_centroids, write_centroids
from mlfilter_core.embedding_store.fingerprint import OneEncoder
from mlfilter_core.errors import ConfigError, OutputConflictError
from mlfilter_core.files.task_files import TaskFile
from mlfilter_core.work.progress import Progress, ProgressTeller
from mlfilter_core.work.same_request import REPLACE, check_same_request
from mlfilter_core.work.workload import ReportDefaults

if TYPE_CHECKING:
    import torch

# faiss's, too: more vectors hardly change where the centres are.
VECTORS_PER_CLUSTER = 256
TEXTS_PER_CLUSTER = 100  # whose words name a cluster
N_EXAMPLES = 3

_log = logging.getLogger(__name__)


def automatic_clusters(n_documents: int) -> int:
    """Returns the number of clusters for a number of documents: half its square root, at least 1."""
    return max(1, round(math.sqrt(n_documents) / 2))


@dataclass(frozen=True)
class CentroidsRequest:
    """What centroids are found on.

    Attributes:
        path: The file of centroids.
        n_clusters: Number of clusters; None for the automatic one.
        seed: Seed of the first centroids.
        most_vectors_bytes: Most bytes of the vectors.
        samples: Request of the samples.
        corpus: Number and digest of the files of embeddings, by their names and sizes.
    """

    path: Path
    n_clusters: int | None
    seed: int
    most_vectors_bytes: int
    samples: SampleRequest
    corpus: Mapping[str, Any]

    def provenance(self) -> dict[str, Any]:
        """Returns the settings that change the centroids."""
        return {
            "n_clusters": self.n_clusters,
            "seed": self.seed,
            "group": self.samples.group,
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


def find_centroids_of(files: Iterable[TaskFile], request: CentroidsRequest, device: "torch.device") -> CentroidsReport:
    """Finds the centroids of a corpus and writes them, complete or not at all.

    Args:
        files: Files of embeddings; those without a sample are left out, as their tasks have failed.
        request: Request of the centroids.
        device: Device to compute on.

    Raises:
        ConfigError: There is no sample with a vector, or the files are of different encoders or widths.
        OSError: Reading or writing failed.
    """
    import torch

    from mlfilter_core.clustering.spherical_k_means import find_centroids, nearest

    started = time.monotonic()
    corpus = _Corpus()
    vectors = corpus.read(files, request)
    n_clusters = request.n_clusters or automatic_clusters(corpus.n_documents)
    teller = ProgressTeller()

    def tell(share: float) -> None:
        if teller.is_due():
            teller.tell(Progress(request.path.name, share=share))

    on_device = torch.nn.functional.normalize(torch.from_numpy(vectors).to(device, torch.float32))
    centres = find_centroids(on_device, n_clusters, request.seed, tell)
    _, cosines = nearest(on_device, centres)
    if len(centres) < n_clusters:
        _log.warning("%d clusters instead of %d: the sample has no more different vectors", len(centres), n_clusters)
    found_on = {
        "request": request.provenance(),
        "corpus": dict(request.corpus),
        "documents": corpus.n_documents,
        "vectors": len(vectors),
        "mean_distance": round(float(1 - cosines.double().mean()), 6),
    }
    rows = torch.from_numpy(np.asarray(corpus.rows_of_texts, np.int64)).to(device)
    labels, of_texts = nearest(on_device[rows], centres)
    names = name_clusters(len(centres), zip(labels.tolist(), (1 - of_texts).tolist(), corpus.texts, strict=True))
    for reason in corpus.without_texts:
        _log.warning("clusters have no names from this file: %s", reason)
    centroids = Centroids(centres.cpu().numpy(), names, corpus.encoder.fingerprint, found_on)
    write_centroids(request.path, centroids)
    return report_of(request, centroids, time.monotonic() - started)


def name_clusters(n_clusters: int, texts: Iterable[tuple[int, float, tuple[str, str]]]) -> list[ClusterName]:
    """Returns what tells each cluster from the others.

    Args:
        n_clusters: Number of clusters.
        texts: Cluster, distance from its centre, id and beginning of the text of each document with a text.
    """
    telling = TellingWords(n_clusters)
    nearest: list[list[tuple[float, str, str]]] = [[] for _ in range(n_clusters)]
    for cluster, distance, (document_id, text) in texts:
        telling.add(cluster, text)
        nearest[cluster] = heapq.nsmallest(N_EXAMPLES, [*nearest[cluster], (distance, document_id, text)])
    words = telling.words()
    examples = (
        tuple(Example(document_id, round(distance, 4), text) for distance, document_id, text in some)
        for some in nearest
    )
    return [ClusterName(*each) for each in zip(names_from(words), map(tuple, words), examples, strict=True)]


class _Corpus:
    """The samples of all files, as one.

    Attributes:
        n_documents: Number of documents of all files.
        encoder: Their encoder.
        texts: Id and beginning of each text.
        rows_of_texts: The vectors that they belong to.
        without_texts: Why texts were not read, one reason of all files.
    """

    def __init__(self) -> None:
        self.n_documents = 0
        self.encoder = OneEncoder()
        self.texts: list[tuple[str, str]] = []
        self.rows_of_texts: list[int] = []
        self.without_texts: list[str] = []

    def read(self, files: Iterable[TaskFile], request: CentroidsRequest) -> NDArray[np.float16]:
        """Returns the vectors that fit in memory, float16 (n, dim), in random order.

        Raises:
            ConfigError: There is none, or the files are of different encoders or widths.
        """
        samples = list(self._samples(files, request.samples))
        n_vectors = sum(len(sample.order) for sample in samples)
        if not n_vectors:
            raise ConfigError(f"{request.samples.folder}: no file has an embedding other than zeros; embed again")
        order = np.concatenate([sample.order for sample in samples])
        most = max(1, request.most_vectors_bytes // (4 * samples[0].directions.shape[1]))
        kept = np.argsort(order, kind="stable")[:most]
        place = np.full(n_vectors, -1, np.int64)
        place[kept] = np.arange(len(kept))
        start = 0
        for sample in samples:
            of_texts = place[start : start + len(sample.texts)].tolist()
            for row, document_id, text in zip(of_texts, sample.ids, sample.texts, strict=True):
                if row >= 0:
                    self.texts.append((document_id, text))
                    self.rows_of_texts.append(row)
            start += len(sample.order)
        return np.concatenate([sample.directions for sample in samples])[kept]

    def _samples(self, files: Iterable[TaskFile], request: SampleRequest) -> Iterator[Sample]:
        width: tuple[int, Path] | None = None
        for file in files:
            sample = load_sample(file, request)
            if sample is None:
                continue
            self.encoder.check(file.path, sample.encoder)
            dim = sample.directions.shape[1]
            width = width or (dim, file.path)
            if dim != width[0]:
                raise ConfigError(
                    f"{width[1]} has embeddings of width {width[0]} and {file.path} of width {dim}; set "
                    "params.glob_pattern to the files of one encoder"
                )
            self.n_documents += sample.documents
            if sample.without_texts and not self.without_texts:
                self.without_texts.append(sample.without_texts)
            yield sample
