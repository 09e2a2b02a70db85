"""The second step of a cluster job: the samples of all files to centroids with names."""

import hashlib
import logging
import math
import tempfile
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import orjson
from numpy.typing import NDArray

from mlfilter_core.clustering.sample import Sample, SampleRequest, load_sample
from mlfilter_core.clustering.telling_words import TellingWords, names_from
from mlfilter_core.embedding_store.centroids import Centroids, ClusterName, Example, load_centroids, write_centroids
from mlfilter_core.embedding_store.fingerprint import OneEncoder
from mlfilter_core.errors import ConfigError, OutputConflictError
from mlfilter_core.files.task_files import TaskFile
from mlfilter_core.wording import plural
from mlfilter_core.work.progress import Progress, ProgressTeller
from mlfilter_core.work.same_request import REPLACE, check_same_request
from mlfilter_core.work.workload import ReportDefaults

if TYPE_CHECKING:
    import torch

# faiss's, too: more vectors hardly change where the centres are.
VECTORS_PER_CLUSTER = 256
TEXTS_PER_CLUSTER = 100  # whose words name a cluster
N_EXAMPLES, EXAMPLE_CHARACTERS = 3, 200  # texts of a cluster, and how much of each: enough to see what it is about
READ, FOUND = 0.1, 0.8  # share of the work that is done once the samples are read, and the centroids found; estimated

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
    with _Corpus(samples.folder) as corpus:
        vectors = corpus.read(files, samples, request.most_vectors, lambda share: tell(READ * share))
        corpus.warn(request.path)
        n_clusters = request.n_clusters or automatic_clusters(corpus.n_documents)
        on_device = torch.nn.functional.normalize(torch.from_numpy(vectors).to(device, torch.float32))
        centres = find_centroids(on_device, n_clusters, request.seed, lambda share: tell(READ + (FOUND - READ) * share))
        labels, cosines = nearest(on_device, centres, lambda share: tell(FOUND))
        if len(centres) < n_clusters:
            reason = "no more different vectors"
            wanted = min(VECTORS_PER_CLUSTER * n_clusters, corpus.n_documents)
            if request.most_vectors(vectors.shape[1]) < wanted:
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
        clusters = corpus.texts.of_clusters(len(centres), labels.cpu().numpy(), 1 - cosines.cpu().numpy())
        names = name_clusters(_told(clusters, len(centres), lambda share: tell(FOUND + (1 - FOUND) * share)))
    centroids = Centroids(centres.cpu().numpy(), names, corpus.encoder.fingerprint, found_on)
    write_centroids(request.path, centroids)
    return report_of(request, centroids, time.monotonic() - started)


Texts = Iterator[tuple[float, str, str]]


def name_clusters(clusters: Iterable[Texts]) -> list[ClusterName]:
    """Returns what tells each cluster from the others.

    Args:
        clusters: For each cluster, its documents that have a text, the nearest to its centre first: distance from the
            centre, id, beginning of the text. They are read once, and not kept.
    """
    telling = TellingWords()
    examples: list[tuple[Example, ...]] = []
    for texts in clusters:
        nearest: list[Example] = []
        telling.add(_noted(texts, nearest))
        examples.append(tuple(nearest))
    words = telling.words()
    return [ClusterName(*each) for each in zip(names_from(words), map(tuple, words), examples, strict=True)]


def _noted(texts: Texts, nearest: list[Example]) -> Iterator[str]:
    """Yields texts; adds the first ones to a list, shortened."""
    for distance, document_id, text in texts:
        if len(nearest) < N_EXAMPLES:
            nearest.append(Example(document_id, round(distance, 4), text[:EXAMPLE_CHARACTERS]))
        yield text


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


class _Texts:
    """Ids and beginnings of texts in a temporary file: those of 16,000 clusters take 3 GB."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = tempfile.TemporaryFile(dir=folder)
        self._places, self._starts = array("q"), array("q")
        self._kept: NDArray[np.int64] = np.empty(0, np.int64)
        self._rows: NDArray[np.int64] = np.empty(0, np.int64)

    def add(self, place: int, document_id: str, text: str) -> None:
        """Adds a text, with the place of its vector among those of all samples."""
        self._places.append(place)
        self._starts.append(self._file.tell())
        self._file.write(orjson.dumps([document_id, text], option=orjson.OPT_APPEND_NEWLINE))

    def keep(self, row_of_place: NDArray[np.int64]) -> None:
        """Keeps the texts whose vectors are kept, given the row of each vector; -1 for one that is not."""
        rows = row_of_place[np.frombuffer(self._places, np.int64)]
        self._kept = np.flatnonzero(rows >= 0)
        self._rows = rows[self._kept]

    def of_clusters(
        self, n_clusters: int, labels: NDArray[np.int64], distances: NDArray[np.float32]
    ) -> Iterator[Texts]:
        """Yields the texts of each cluster, the nearest to its centre first; each text is read when it is asked for.

        Args:
            n_clusters: Number of clusters.
            labels: Cluster of each vector.
            distances: Distance of each from the centre.
        """
        labels, distances = labels[self._rows], distances[self._rows]
        order = np.lexsort((self._rows, distances, labels))
        bounds = np.searchsorted(labels[order], np.arange(n_clusters + 1))
        for start, stop in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
            yield ((float(distances[i]), *self._read(int(self._kept[i]))) for i in order[start:stop].tolist())

    def close(self) -> None:
        """Removes the file."""
        self._file.close()

    def _read(self, number: int) -> tuple[str, str]:
        self._file.seek(self._starts[number])
        document_id, text = orjson.loads(self._file.readline())
        return document_id, text


class _Corpus:
    """The samples of all files, as one. Use it as a context manager.

    Attributes:
        n_documents: Number of documents of the files that have a sample.
        n_left_out: Number of files that have none.
        encoder: Their encoder.
        texts: The texts.
        without_texts: Why the texts of the first file without were not read; empty where all were.
    """

    def __init__(self, folder: Path) -> None:
        self.n_documents = self.n_left_out = 0
        self.encoder = OneEncoder()
        self.texts = _Texts(folder)
        self.without_texts = ""
        self._first_left_out = ""

    def __enter__(self) -> "_Corpus":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.texts.close()

    def read(
        self,
        files: Sequence[TaskFile],
        request: SampleRequest,
        most_vectors: Callable[[int], int],
        tell: Callable[[float], None],
    ) -> NDArray[np.float16]:
        """Returns the vectors that fit in memory, float16 (n, dim), in random order.

        Args:
            files: The files.
            request: Request of their samples.
            most_vectors: Returns the most vectors, given their width.
            tell: Called with the share of the files that is read.

        Raises:
            ConfigError: There is none, or the files are of different encoders or widths.
        """
        orders, directions, n_vectors = [], [], 0
        for sample in self._samples(files, request, tell):
            for place, document_id, text in zip(
                range(n_vectors, n_vectors + len(sample.texts)), sample.ids, sample.texts, strict=True
            ):
                self.texts.add(place, document_id, text)
            orders.append(sample.order)
            directions.append(sample.directions)
            n_vectors += len(sample.order)
        if not orders:
            raise ConfigError(
                f"{request.folder}: none of {len(files)} files has a sample of its present version; run the job again"
            )
        if not n_vectors:
            raise ConfigError(f"{files[0].folder}: no file has an embedding other than zeros; embed again")
        most = most_vectors(directions[0].shape[1])
        kept = np.argsort(np.concatenate(orders), kind="stable")[:most]
        row_of_place = np.full(n_vectors, -1, np.int64)
        row_of_place[kept] = np.arange(len(kept))
        self.texts.keep(row_of_place)
        return np.concatenate(directions)[kept]

    def warn(self, path: Path) -> None:
        """Warns of files without a sample, and of texts that were not read, given the file of centroids."""
        if self.n_left_out:
            _log.warning(
                "centroids are found without %s that have no sample, as sampling failed, such as %s",
                *(plural(self.n_left_out, "file"), self._first_left_out),
            )
        if self.without_texts:
            _log.warning(
                "clusters have no names from some files: %s; to name them, remove %s then, and run the job again",
                *(self.without_texts, path),
            )

    def _samples(
        self, files: Sequence[TaskFile], request: SampleRequest, tell: Callable[[float], None]
    ) -> Iterator[Sample]:
        width: tuple[int, Path] | None = None
        for number, file in enumerate(files):
            tell(number / len(files))
            sample = load_sample(file, request)
            if sample is None:
                self._first_left_out = self._first_left_out or file.relative
                self.n_left_out += 1
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
            self.without_texts = self.without_texts or sample.without_texts
            yield sample
