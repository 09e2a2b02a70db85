"""The samples of all files of a corpus, as one: vectors in memory, texts on disk."""

import logging
import tempfile
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
import orjson
from numpy.typing import NDArray

from mlfilter_core.clustering.sample import Sample, SampledText, SampleRequest, load_sample
from mlfilter_core.embedding_store.fingerprint import OneEncoder
from mlfilter_core.errors import ConfigError
from mlfilter_core.files.task_files import TaskFile
from mlfilter_core.wording import plural

Texts = Iterator[tuple[float, SampledText]]  # with the distance from a centre

_log = logging.getLogger(__name__)


class SampledCorpus:
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
        self.texts = SampledTexts(folder)
        self.without_texts = ""
        self._first_left_out = ""

    def __enter__(self) -> "SampledCorpus":
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
            for place, text in enumerate(sample.texts, n_vectors):
                self.texts.add(place, text)
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


class SampledTexts:
    """Texts in a temporary file: those of 16,000 clusters take 3 GB."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = tempfile.TemporaryFile(dir=folder)
        self._places, self._starts = array("q"), array("q")
        self._kept: NDArray[np.int64] = np.empty(0, np.int64)
        self._rows: NDArray[np.int64] = np.empty(0, np.int64)

    def add(self, place: int, text: SampledText) -> None:
        """Adds a text, with the place of its vector among those of all samples."""
        self._places.append(place)
        self._starts.append(self._file.tell())
        self._file.write(orjson.dumps(text, option=orjson.OPT_APPEND_NEWLINE))

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
            yield ((float(distances[i]), self._read(int(self._kept[i]))) for i in order[start:stop].tolist())

    def close(self) -> None:
        """Removes the file."""
        self._file.close()

    def _read(self, number: int) -> SampledText:
        self._file.seek(self._starts[number])
        return SampledText(**orjson.loads(self._file.readline()))
