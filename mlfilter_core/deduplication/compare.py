"""The second step of a deduplication job: the pairs of duplicates of a bucket of cells, or of hashes."""

import hashlib
import time
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import orjson
from numpy.typing import NDArray

from mlfilter_core.deduplication.distribute import (
    HASHES,
    VECTORS,
    VISITS,
    DistributeRequest,
    Search,
    load_rows,
)
from mlfilter_core.deduplication.edges import Edges, Forest
from mlfilter_core.deduplication.partitions import read_bucket
from mlfilter_core.embedding_store.centroids import load_same_searched
from mlfilter_core.files.new_file import open_new
from mlfilter_core.files.numpy_archives import DAMAGED, column, is_damage
from mlfilter_core.files.publishing import publish
from mlfilter_core.files.task_files import TaskFile, TaskFiles
from mlfilter_core.work.progress import Progress, ProgressTeller
from mlfilter_core.work.workload import ReportDefaults

if TYPE_CHECKING:
    import torch


SUFFIX = ".npz"
PAIRS_FOLDER, HASH_TASK, CELL_TASK = "pairs", "texts", "cells"
SAME_TEXT = 2.0  # in place of the cosine of two equal texts

_known: "dict[str, _Probes]" = {}


@dataclass(frozen=True)
class CompareRequest:
    """What the pairs of a run are.

    Attributes:
        files: Files of embeddings, whose rows are divided.
        divided: Request of the divided rows.
        levels: Thresholds at which groups must be exact, ascending; the first is that of the search.
        corpus: Number and digest of the files of embeddings, by their names and sizes.
    """

    files: TaskFiles
    divided: DistributeRequest
    levels: Sequence[float]
    corpus: Any

    @property
    def folder(self) -> Path:
        """Folder of the pairs."""
        return self.divided.folder / PAIRS_FOLDER

    def tasks(self) -> list[TaskFile]:
        """Returns a task for each bucket."""
        n_buckets = 0 if self.divided.search is None else self.divided.search.n_buckets
        of_cells = [f"{CELL_TASK}-{i}" for i in range(n_buckets)]
        names = [*of_cells, *(f"{HASH_TASK}-{i}" for i in range(self.divided.n_hash_buckets))]
        return [TaskFile(name, name, self.folder.absolute()) for name in names]

    def output(self, task: TaskFile) -> Path:
        return task.output(self.folder, SUFFIX)

    def facts(self) -> str:
        """Returns the digest of what the pairs depend on."""
        search = self.divided.search
        made_by = {
            "corpus": self.corpus,
            "group": self.divided.group,
            "seed": self.divided.seed,
            "n_hash_buckets": self.divided.n_hash_buckets,
            "levels": list(self.levels),
            "search": None if search is None else search.facts,
        }
        return hashlib.sha256(orjson.dumps(made_by)).hexdigest()


@dataclass(frozen=True)
class CompareReport(ReportDefaults):
    """The result of comparing the documents of one bucket.

    Attributes:
        bucket: Name of the bucket.
        output: Path of the pairs.
        status: `compared`, or `skipped` where it was compared before.
        documents: Number of documents of the bucket.
        pairs: Number of pairs that connect its duplicates.
        seconds: Wall time; 0 where skipped.
        worker: Name of the process; empty where skipped.
        started: Start time in seconds since 1970, UTC; 0 where skipped.
    """

    PRINTED: ClassVar[Sequence[str]] = ("documents", "pairs", "seconds")
    SUMMED: ClassVar[Sequence[str]] = ("documents", "pairs")

    bucket: str
    output: str
    status: Literal["compared", "skipped"]
    documents: int
    pairs: int
    seconds: float = 0.0
    worker: str = ""
    started: float = 0.0


@dataclass(frozen=True)
class Pairs:
    """The pairs of a bucket; rows are counted over all files.

    Attributes:
        first, second: Rows of each pair, int64 (n,).
        cosines: float32 (n,); `SAME_TEXT` for equal texts.
        recall: Number of near-duplicates of probes among the documents of the bucket, by a search of all, and of those
            that the search compares.
    """

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    cosines: NDArray[np.float32]
    recall: tuple[int, int]


def first_rows(files: Iterable[TaskFile], request: DistributeRequest) -> NDArray[np.int64]:
    """Returns the number of the first row of each file over all files, int64 (n_files + 1,), ending with their number.

    Raises:
        EmbeddingFileError: A file's rows are not divided.
    """
    counts = (load_rows(file, request, []).documents for file in files)
    return np.fromiter(accumulate(counts, initial=0), np.int64)


def compare(task: TaskFile, request: CompareRequest, device: "torch.device") -> CompareReport:
    """Writes the pairs of a bucket, complete or not at all.

    Raises:
        EmbeddingFileError: A file's rows are not divided.
        OSError: Reading or writing failed.
    """
    started = time.monotonic()
    facts = request.facts()
    kind, _, number = task.stem.rpartition("-")
    if kind == HASH_TASK:
        documents, pairs = _equal_texts(int(number), request)
    else:
        documents, pairs = _Bucket(task, int(number), request, device).pairs()
    with publish(request.output(task)) as temporary, open_new(temporary) as sink:
        np.savez(
            sink,
            facts=np.frombuffer(orjson.dumps([facts, documents, len(pairs.cosines), *pairs.recall]), np.uint8),
            first=pairs.first,
            second=pairs.second,
            cosines=pairs.cosines,
        )
    seconds = time.monotonic() - started
    return _report(task, request, "compared", documents, len(pairs.cosines), seconds)


def finished_comparison(task: TaskFile, request: CompareRequest) -> CompareReport | None:
    """Returns the report of a bucket that is compared; None where it has yet to be."""
    try:
        with open(request.output(task), "rb") as opened, zipfile.ZipFile(opened) as archive:
            facts, documents, n_pairs, *_ = orjson.loads(column(archive, "facts", np.uint8).data)
    except (OSError, *DAMAGED) as error:
        if not is_damage(error):
            raise
        return None
    return _report(task, request, "skipped", documents, n_pairs) if facts == request.facts() else None


def load_pairs(task: TaskFile, request: CompareRequest) -> Pairs:
    """Returns the pairs of a bucket that is compared.

    Raises:
        OSError, ValueError: They cannot be read.
    """
    with open(request.output(task), "rb") as opened, zipfile.ZipFile(opened) as archive:
        *_, n_all, n_compared = orjson.loads(column(archive, "facts", np.uint8).data)
        return Pairs(
            column(archive, "first", np.int64),
            column(archive, "second", np.int64),
            column(archive, "cosines", np.float32),
            (n_all, n_compared),
        )


def _equal_texts(bucket: int, request: CompareRequest) -> tuple[int, Pairs]:
    """Returns the number of documents of a bucket of hashes, and a pair of each that has the text of one before."""
    rows, hashes = [np.empty(0, np.int64)], [np.empty(0, np.uint64)]
    start = 0
    for file in request.files:
        of_file = load_rows(file, request.divided, [])
        if of_file.has_hashes:
            path = request.divided.output(file, HASHES)
            for some in read_bucket(path, bucket, request.divided.n_hash_buckets):
                rows.append(some["row"] + start)
                hashes.append(some["hash"])
        start += of_file.documents
    row, of = np.concatenate(rows), np.concatenate(hashes)
    order = np.lexsort((row, of))
    row, of = row[order], of[order]
    is_first = np.ones(len(of), bool)
    is_first[1:] = of[1:] != of[:-1]
    firsts = row[is_first][np.cumsum(is_first) - 1]
    cosines = np.full(int((~is_first).sum()), SAME_TEXT, np.float32)
    return len(row), Pairs(firsts[~is_first], row[~is_first], cosines, (0, 0))


@dataclass(frozen=True)
class _Cell:
    """The documents of a cell, and those that visit it.

    Attributes:
        number: Number of the cell.
        places: Places of its documents.
        visitors: Places of the documents that visit it, int64 (n_visitors,).
    """

    number: int
    places: slice
    visitors: NDArray[np.int64]


class _Bucket:
    """The documents of a bucket of cells, and those that visit it."""

    def __init__(self, task: TaskFile, bucket: int, request: CompareRequest, device: "torch.device") -> None:
        import torch

        from mlfilter_core.deduplication.bounds import bounded, find_directions

        search = request.divided.search
        assert search is not None
        self._name, self._search, self._levels = task.name, search, request.levels
        centroids = load_same_searched(search.centroids, search.cells_sha256)
        self._cells = torch.from_numpy(centroids.searched.vectors).to(device)
        self._probes = _probes_of(request, search, self._cells)
        vectors = self._read(bucket, request, self._probes.starts, VECTORS)
        visits = self._read(bucket, request, self._probes.starts, VISITS)
        order = np.lexsort((vectors["row"], vectors["cell"]))  # copies first, then cell by cell
        self._rows, self._cells_of_rows = vectors["row"][order], vectors["cell"][order]
        all_vectors = torch.from_numpy(vectors.pop("vector")[order]).to(device)
        self._n_copies = int((self._cells_of_rows < 0).sum())
        by_row = np.argsort(self._rows, kind="stable")
        place_of = by_row[np.searchsorted(self._rows[by_row], visits["row"])]
        order = np.lexsort((place_of, visits["cell"]))
        self._visitors, self._visited = place_of[order], visits["cell"][order]
        directions = None
        if cells := list(self._each_cell()):
            largest = max(cells, key=lambda cell: cell.places.stop - cell.places.start)
            own, visiting = all_vectors[largest.places], all_vectors[torch.from_numpy(largest.visitors).to(device)]
            directions = find_directions(all_vectors, own, torch.cat([own, visiting]), self._levels[0])
        self._vectors = bounded(all_vectors, directions)
        self._probe_vectors = bounded(self._probes.vectors, directions)

    @staticmethod
    def _read(bucket: int, request: CompareRequest, starts: list[int], suffix: str) -> dict[str, NDArray[Any]]:
        search = request.divided.search
        assert search is not None
        parts: dict[str, list[NDArray[Any]]] = {}
        for file, start in zip(request.files, starts, strict=False):
            for some in read_bucket(request.divided.output(file, suffix), bucket, search.n_buckets):
                some["row"] = some["row"] + start
                for name, values in some.items():
                    parts.setdefault(name, []).append(np.array(values))
        if suffix == VECTORS:
            parts.setdefault("vector", []).insert(0, np.empty((0, search.dim), np.float32))
        for name in ("row", "cell"):
            parts.setdefault(name, []).insert(0, np.empty(0, np.int64))
        return {name: np.concatenate(parts.pop(name)) for name in list(parts)}

    def pairs(self) -> tuple[int, Pairs]:
        """Returns the number of documents of the bucket, and the pairs."""
        forest, recall, teller = Forest(len(self._rows), self._levels), np.zeros(2, np.int64), ProgressTeller()
        n_documents = len(self._rows) - self._n_copies
        for cell in self._each_cell():
            for found in self._compared(cell, forest):
                forest.add(found)
            recall += self._recall_in(cell)
            if teller.is_due():
                n_done = cell.places.stop - self._n_copies
                teller.tell(Progress(self._name, n_done, share=n_done / n_documents))
        edges = forest.edges()
        n_all, n_compared = recall.tolist()
        rows = self._rows[edges.first], self._rows[edges.second]
        return n_documents, Pairs(*rows, edges.cosines, (n_all, n_compared))

    def _each_cell(self) -> Iterator[_Cell]:
        for number in np.unique(self._cells_of_rows[self._n_copies :]).tolist():
            both = [number, number + 1]
            places, visits = (np.searchsorted(each, both).tolist() for each in (self._cells_of_rows, self._visited))
            yield _Cell(number, slice(*places), self._visitors[slice(*visits)])

    def _compared(self, cell: _Cell, forest: Forest) -> Iterator[Edges]:
        """Yields the pairs of a cell, and of the cell and its visitors, that are not connected yet."""
        import torch

        from mlfilter_core.deduplication.pairs import similar_between, similar_within

        threshold, device, start = self._levels[0], self._cells.device, cell.places.start
        vectors, visiting = self._vectors[cell.places], self._vectors[torch.from_numpy(cell.visitors).to(device)]

        def connected(places: NDArray[np.int64] | slice) -> tuple[torch.Tensor, torch.Tensor] | None:
            if (known := forest.connected) is None:
                return None
            one, other = torch.from_numpy(known[places]), torch.from_numpy(known[cell.places])
            return one.to(device), other.to(device)

        for edges in similar_within(vectors, threshold, partial(connected, cell.places)):
            yield Edges(edges.first + start, edges.second + start, edges.cosines)
        for edges in similar_between(visiting, vectors, threshold, partial(connected, cell.visitors)):
            yield Edges(cell.visitors[edges.first], edges.second + start, edges.cosines)

    def _recall_in(self, cell: _Cell) -> tuple[int, int]:
        """Returns how many near-duplicates of probes a cell has, and how many of them the search compares."""
        from mlfilter_core.deduplication.pairs import similar_between

        probes, n_cells = self._probes, len(self._cells)
        if not len(probes.rows):
            return 0, 0
        n_all = -int(np.isin(probes.rows, self._rows[cell.places]).sum())  # a probe is no pair with itself
        n_missed, visits = 0, None
        vectors = self._vectors[cell.places]
        for found in similar_between(self._probe_vectors, vectors, self._levels[0]):
            n_all += len(found)
            left = found[~probes.are_compared_in(cell.number, found.first)]
            if len(left):
                # The search compares these only where the other document visits the cell of the probe.
                if visits is None:
                    _, visitors, visited = _visits(vectors.vectors, self._cells, self._search)
                    visits = visitors * n_cells + visited
                n_missed += int((~np.isin(left.second * n_cells + probes.homes[left.first], visits)).sum())
        return n_all, n_all - n_missed


@dataclass(frozen=True)
class _Probes:
    """Documents that are compared with all others.

    Attributes:
        starts: First row of each file.
        rows: int64 (n,).
        vectors: float32 (n, dim), of unit length.
        homes: Cell of each, int64 (n,).
        visitors: Numbers of the probes that are compared in each cell, one cell after another, int64 (n_visits,).
        bounds: Where those of each cell begin, and where the last ones end, int64 (n_cells + 1,).
    """

    starts: list[int]
    rows: NDArray[np.int64]
    vectors: "torch.Tensor"
    homes: NDArray[np.int64]
    visitors: NDArray[np.int64]
    bounds: NDArray[np.int64]

    def are_compared_in(self, cell: int, probes: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Returns whether probes, by their numbers, are compared with the documents of a cell."""
        return np.isin(probes, self.visitors[slice(*self.bounds[cell : cell + 2])])


def _probes_of(request: CompareRequest, search: Search, cells: "torch.Tensor") -> _Probes:
    """Returns the probes of a run, read once for the tasks of a process."""
    import torch

    facts = f"{request.divided.folder} {request.facts()} {cells.device}"
    if facts not in _known:
        starts = first_rows(request.files, request.divided).tolist()
        rows, vectors = [np.empty(0, np.int64)], [np.empty((0, search.dim), np.float32)]
        for file, start in zip(request.files, starts, strict=False):
            of_file = load_rows(file, request.divided, ["probes"])
            if len(of_file.probes):
                rows.append(of_file.probes + start)
                vectors.append(of_file.probe_vectors)
        on_device = torch.from_numpy(np.concatenate(vectors)).to(cells.device)
        homes, visitors, visited = _visits(on_device, cells, search)
        probes, of = np.concatenate([np.arange(len(homes)), visitors]), np.concatenate([homes, visited])
        order = np.argsort(of, kind="stable")
        bounds = np.searchsorted(of[order], np.arange(len(cells) + 1))
        _known.clear()
        _known[facts] = _Probes(starts, np.concatenate(rows), on_device, homes, probes[order], bounds)
    return _known[facts]


def _visits(vectors: "torch.Tensor", cells: "torch.Tensor", search: Search) -> list[NDArray[np.int64]]:
    """Returns the cell of each vector, then place and cell of each visit, int64 (n,), (v,) and (v,)."""
    from mlfilter_core.deduplication.borders import visits

    return [each.cpu().numpy() for each in visits(vectors, cells, search.threshold, search.neighbours)]


def _report(
    task: TaskFile,
    request: CompareRequest,
    status: Literal["compared", "skipped"],
    documents: int,
    pairs: int,
    seconds: float = 0.0,
) -> CompareReport:
    return CompareReport(task.relative, str(request.output(task)), status, documents, pairs, seconds)
