"""The first step of a deduplication job: the rows of a file of embeddings, divided into buckets that are compared."""

import functools
import hashlib
import logging
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import orjson
from numpy.typing import NDArray

from mlfilter_core.annotating.annotated_format import SUFFIXES
from mlfilter_core.clustering.assign_clusters import check_fits
from mlfilter_core.clustering.directions import directions
from mlfilter_core.clustering.sample import version_of
from mlfilter_core.compute.splitmix64 import numbers_of_rows
from mlfilter_core.config.deduplication import DeduplicationParameters
from mlfilter_core.corpus.documents import as_string
from mlfilter_core.corpus.lines import Line
from mlfilter_core.deduplication.buckets import buckets_of
from mlfilter_core.deduplication.partitions import open_partitions
from mlfilter_core.embedding_store.centroids import load_centroids, load_same_searched
from mlfilter_core.embedding_store.duplicate_file import number_of
from mlfilter_core.embedding_store.layout import DOCUMENT_ID, N_TOKENS, TEXT_HASH
from mlfilter_core.embedding_store.reader import EmbeddingFile
from mlfilter_core.errors import AnnotationError, EmbeddingFileError
from mlfilter_core.files.identity import is_same_file
from mlfilter_core.files.new_file import open_new
from mlfilter_core.files.numpy_archives import DAMAGED, column, is_damage
from mlfilter_core.files.publishing import publish
from mlfilter_core.files.task_files import TaskFile
from mlfilter_core.filtering.annotated_file import lines_of, record_of, recorded_provenance, score_field
from mlfilter_core.work.progress import Progress, ProgressTeller
from mlfilter_core.work.workload import ReportDefaults

if TYPE_CHECKING:
    import torch

ROWS, VECTORS, VISITS, HASHES = ".npz", ".vectors.arrow", ".visits.arrow", ".hashes.arrow"
FILES_FOLDER = "files"  # beside that of the pairs
SLICE_BYTES = 128 << 20  # of embeddings that are divided at a time
N_PROBES = 4000  # documents that are compared with all others
COPY = -1  # cell of a vector that belongs to another bucket and visits a cell of this one
LONGEST, FIRST = "longest", "first"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Search:
    """How near-duplicates are searched.

    Attributes:
        centroids: File of the centres of the clusters, and of the cells.
        centroids_sha256: Digest of the centres of the clusters.
        cells_sha256: Digest of the cells, or of the same centres where clusters are the cells.
        dim: Width of the embeddings.
        threshold: Lowest cosine of duplicates.
        neighbours: Most cells that a document visits.
        buckets: Bucket of each cell, int64 (m,).
        probe_share: Share of the documents that are compared with all others, from 0 to 1.
    """

    centroids: Path
    centroids_sha256: str
    cells_sha256: str
    dim: int
    threshold: float
    neighbours: int
    buckets: NDArray[np.int64] = field(repr=False)
    probe_share: float

    @property
    def has_cells(self) -> bool:
        """Whether cells are not the clusters themselves."""
        return self.cells_sha256 != self.centroids_sha256

    @property
    def n_buckets(self) -> int:
        """Number of buckets."""
        return int(self.buckets.max()) + 1

    @functools.cached_property
    def facts(self) -> dict[str, Any]:
        """What divided rows and their pairs depend on; another name of a fact stands for another format of the rows."""
        return {
            "cells": self.cells_sha256,
            "threshold": self.threshold,
            "neighbours": self.neighbours,
            "buckets": hashlib.sha256(self.buckets.tobytes()).hexdigest(),
            "probe_share": self.probe_share,
        }


@dataclass(frozen=True)
class DistributeRequest:
    """What the rows of a file are divided for.

    Attributes:
        folder: Folder of the divided rows.
        group: Name of the HDF5 group.
        search: How near-duplicates are searched; None where equal texts alone are duplicates.
        prefer: Which document of a group is kept.
        score: Name of the score that decides, with `prefer: best`.
        annotated: Folder of the annotated files; None without them.
        seed: Seed of the sample.
        n_hash_buckets: Number of buckets of hashes of texts.
    """

    folder: Path
    group: str
    search: Search | None
    prefer: Literal["first", "longest", "best"]
    score: str | None
    annotated: Path | None
    seed: int
    n_hash_buckets: int

    def output(self, file: TaskFile, suffix: str = ROWS) -> Path:
        return file.output(self.folder / FILES_FOLDER, suffix)

    def facts(self, file: TaskFile) -> dict[str, Any]:
        """Returns what the divided rows of a file depend on."""
        return {
            "group": self.group,
            "prefer": self.prefer,
            "score": self.score,
            "seed": self.seed,
            "n_hash_buckets": self.n_hash_buckets,
            "embeddings": version_of(file.path),
            "annotated": None if self.score is None else version_of(annotated_file(file, self.annotated).path),
            "search": None if self.search is None else self.search.facts,
        }


@dataclass(frozen=True)
class DividedRows:
    """What later steps need to know of the rows of a file.

    Attributes:
        documents: Number of documents.
        identity: Number of the version of the file of embeddings, as of `number_of`.
        has_hashes: Whether there are hashes of the texts.
        ids: Document id of each, or its row.
        values: What decides which document of a group is kept, the highest, float64 (n,).
        probes: Rows that are compared with all others, int64 (p,).
        probe_vectors: float32 (p, dim), of unit length.
    """

    documents: int
    identity: int
    has_hashes: bool
    ids: Sequence[str]
    values: NDArray[np.float64]
    probes: NDArray[np.int64]
    probe_vectors: NDArray[np.float32]


@dataclass(frozen=True)
class DistributeReport(ReportDefaults):
    """The result of dividing the rows of one file.

    Attributes:
        embeddings: Path relative to the folder of embeddings.
        output: Path of the divided rows.
        status: `divided`, or `skipped` where they were divided before.
        documents: Number of documents.
        seconds: Wall time; 0 where skipped.
        worker: Name of the process; empty where skipped.
        started: Start time in seconds since 1970, UTC; 0 where skipped.
    """

    PRINTED: ClassVar[Sequence[str]] = ("documents", "seconds", "documents/s")
    SUMMED: ClassVar[Sequence[str]] = ("documents",)

    embeddings: str
    output: str
    status: Literal["divided", "skipped"]
    documents: int
    seconds: float = 0.0
    worker: str = ""
    started: float = 0.0


def search_of(params: DeduplicationParameters, path: Path, documents: NDArray[np.int64], n_rows: int) -> Search:
    """Returns how the near-duplicates of a job are searched.

    Args:
        params: Parameters with another threshold than `exact`.
        path: File of centroids.
        documents: Documents of each cluster, int64 (k,), of all or some of the corpus; a cluster is a cell where there
            are no smaller ones.
        n_rows: Number of documents of the corpus.

    Raises:
        ConfigError: The file is missing or broken.
    """
    assert params.threshold != "exact"
    centroids = load_centroids(path)
    cells = centroids.searched
    of_cells = documents if centroids.cells is None else centroids.cells.documents(documents)
    documents = (of_cells * (n_rows / max(1, of_cells.sum()))).astype(np.int64)
    # Each document of a bucket may visit others, and all are in memory twice while they are put in order.
    n_bytes = 4 * centroids.vectors.shape[1] * (1 + params.neighbours) * 2
    most_rows = params.memory_gb * 10**9 / n_bytes
    if (largest := int(documents.max(initial=0))) > (1 + params.neighbours) * most_rows:
        _log.warning(
            "the largest cell has about %d documents, which are compared in one task and take %.1f GB, more than "
            "memory_gb: %g; give the workers that much%s",
            *(largest, largest * 8 * centroids.vectors.shape[1] / 10**9, params.memory_gb),
            ", or cluster again, which finds smaller cells" if centroids.cells is None else "",
        )
    return Search(
        path,
        centroids.sha256,
        cells.sha256,
        centroids.vectors.shape[1],
        params.threshold,
        params.neighbours,
        buckets_of(cells.vectors, documents, most_rows),
        min(1.0, N_PROBES / max(1, n_rows)),
    )


def distribute(file: TaskFile, request: DistributeRequest, device: "torch.device") -> DistributeReport:
    """Divides the rows of a file of embeddings into buckets, complete or not at all.

    Raises:
        AnnotationError: The annotated file is missing, broken, or was not made from the file.
        EmbeddingFileError: The file is broken, of another encoder than the centroids, or lacks what is asked for.
        OSError: Reading or writing failed.
    """
    import torch

    started = time.monotonic()
    facts = request.facts(file)
    with EmbeddingFile(file.path, request.group) as embeddings, ExitStack() as stack:
        # Entered first, so that it appears last: later steps look for it.
        rows_target = stack.enter_context(publish(request.output(file)))
        ids, hashes = _columns(embeddings)
        values = _values(file, request, embeddings)
        if hashes is None:
            request.output(file, HASHES).unlink(missing_ok=True)  # of an earlier version
        else:
            target = stack.enter_context(publish(request.output(file, HASHES)))
            with open_partitions(target, request.n_hash_buckets) as partitions:
                rows = np.arange(len(hashes), dtype=np.int64)
                buckets = (hashes % np.uint64(request.n_hash_buckets)).astype(np.int64)
                partitions.add({"row": rows, "hash": hashes}, buckets)
        probes = np.empty(0, np.int64)
        probe_vectors = np.empty((0, embeddings.dim), np.float32)
        if request.search is not None:
            centroids = load_same_searched(request.search.centroids, request.search.cells_sha256)
            check_fits(embeddings, centroids)
            is_probe = _drawn(file.stem, embeddings.n_rows, request.seed, request.search.probe_share)
            targets = [stack.enter_context(publish(request.output(file, suffix))) for suffix in (VECTORS, VISITS)]
            on_device = torch.from_numpy(centroids.searched.vectors).to(device)
            probe_vectors = _divide(file, embeddings, request.search, on_device, is_probe, *targets)
            probes = np.flatnonzero(is_probe)
        elif hashes is None:
            raise EmbeddingFileError(f"{file.path} has no {TEXT_HASH}, by which equal texts are found; embed it again")
        documents = embeddings.n_rows
        facts |= {
            "documents": documents,
            "identity": number_of(embeddings.identity()),
            "has_hashes": hashes is not None,
        }
        with open_new(rows_target) as sink:
            np.savez(
                sink,
                facts=np.frombuffer(orjson.dumps(facts), np.uint8),
                ids=np.frombuffer(orjson.dumps(ids), np.uint8),
                values=values,
                probes=probes.astype(np.int64),
                probe_vectors=probe_vectors,
            )
    return _report(file, request, "divided", documents, time.monotonic() - started)


def finished_distribution(file: TaskFile, request: DistributeRequest) -> DistributeReport | None:
    """Returns the report of rows that are divided; None where they have yet to be."""
    found = _facts(file, request)
    return None if found is None else _report(file, request, "skipped", found["documents"])


def load_rows(file: TaskFile, request: DistributeRequest, names: Sequence[str]) -> DividedRows:
    """Returns what is known of the rows of a file.

    Args:
        file: The file of embeddings, whose rows are divided.
        request: The request of the run.
        names: Attributes that are read; the others are empty.

    Raises:
        EmbeddingFileError: They are not divided, or this is damaged.
    """
    try:
        with open(request.output(file), "rb") as opened, zipfile.ZipFile(opened) as archive:
            facts = orjson.loads(column(archive, "facts", np.uint8).data)
            vectors = column(archive, "probe_vectors", np.float32) if "probes" in names else np.empty(0, np.float32)
            probes = column(archive, "probes", np.int64) if "probes" in names else np.empty(0, np.int64)
            return DividedRows(
                facts["documents"],
                facts["identity"],
                facts["has_hashes"],
                orjson.loads(column(archive, "ids", np.uint8).data) if "ids" in names else [],
                column(archive, "values", np.float64) if "values" in names else np.empty(0),
                probes,
                vectors.reshape(len(probes), -1) if len(probes) else np.empty((0, 0), np.float32),
            )
    except (OSError, *DAMAGED) as error:
        if not is_damage(error):
            raise
        raise EmbeddingFileError(f"{file.path}: its rows were not divided ({error}); run the job again") from error


def annotated_file(file: TaskFile, folder: Path | None) -> TaskFile:
    """Returns the annotated file of a file of embeddings.

    Raises:
        AnnotationError: There is none.
    """
    assert folder is not None
    for suffix in SUFFIXES.values():
        if file.output(folder, suffix).exists():
            return TaskFile(f"{file.stem}{suffix}", file.stem, folder.absolute())
    raise AnnotationError(
        f"there is no {file.output(folder, '.jsonl')}, the annotated file of {file.path}; annotate it first, correct "
        "params.annotated_directory, or leave it out"
    )


def annotated_lines(annotated: TaskFile, embeddings: EmbeddingFile) -> Iterator[Line]:
    """Yields the line of each row of a file of embeddings.

    Raises:
        AnnotationError: The annotated file was not made from the embeddings, or changed since; it has lines of other
            documents, or another number of them.
    """
    made = recorded_provenance(annotated)
    if made is not None and not is_same_file(annotated.path, made["output"], read_content=True):
        raise AnnotationError(
            f"{annotated.path} was changed since it was annotated, so its lines may not be in the order of "
            f"{embeddings.path}; annotate it again"
        )
    if made is not None and made.get("embeddings") != embeddings.identity():
        raise AnnotationError(
            f"{annotated.path} was not made from this version of {embeddings.path}; annotate it again"
        )
    has_ids = made is None and DOCUMENT_ID in embeddings.names()
    ids = embeddings.strings(DOCUMENT_ID, slice(None)) if has_ids else None
    n_lines = 0
    for line in lines_of(annotated.path):
        if ids is not None and n_lines < len(ids):
            document_id = record_of(line, annotated.path, large_numbers=False).get(DOCUMENT_ID)
            if document_id is not None and as_string(document_id) != ids[n_lines]:
                raise AnnotationError(
                    f"{annotated.path}:{line.number} is of document {document_id}, and row {n_lines} of "
                    f"{embeddings.path} is of {ids[n_lines]}; annotate it again"
                )
        n_lines += 1
        yield line
    if n_lines != embeddings.n_rows:
        raise AnnotationError(
            f"{annotated.path} has {n_lines} lines, and {embeddings.path} {embeddings.n_rows} rows; annotate it again"
        )


def _columns(embeddings: EmbeddingFile) -> "tuple[list[str], NDArray[np.uint64] | None]":
    """Returns ids, and hashes of texts where they are stored, of all rows."""
    names, every = embeddings.names(), slice(None)
    ids = (
        embeddings.strings(DOCUMENT_ID, every)
        if DOCUMENT_ID in names
        else [f"row {row}" for row in range(embeddings.n_rows)]
    )
    return ids, embeddings.array(TEXT_HASH, every).astype(np.uint64) if TEXT_HASH in names else None


def _values(file: TaskFile, request: DistributeRequest, embeddings: EmbeddingFile) -> NDArray[np.float64]:
    """Returns what decides which of several documents is kept."""
    if request.prefer == FIRST:
        return np.zeros(embeddings.n_rows)
    if request.prefer == LONGEST:
        if N_TOKENS not in embeddings.names():
            raise EmbeddingFileError(f"{file.path} has no {N_TOKENS}; set prefer: first, or embed it again")
        return embeddings.tokens(slice(None)).astype(np.float64)
    assert request.score is not None
    annotated = annotated_file(file, request.annotated)
    values = []
    for line in annotated_lines(annotated, embeddings):
        record = record_of(line, annotated.path, large_numbers=False)
        name = score_field(request.score, record, annotated.path, "params.score")
        if name is None:
            raise AnnotationError(
                f'{annotated.path}:{line.number} has no score "{request.score}"; the lines have: {", ".join(record)}'
            )
        value = record[name]
        values.append(float(value) if isinstance(value, int | float) else -np.inf)  # unknown ones are kept last
    return np.array(values, np.float64)


def _divide(
    file: TaskFile,
    embeddings: EmbeddingFile,
    search: Search,
    cells: "torch.Tensor",
    is_probe: NDArray[np.bool_],
    vectors_file: Path,
    visits_file: Path,
) -> NDArray[np.float32]:
    """Writes vectors and visits of a file into their buckets; returns the vectors of its probes."""
    import torch

    from mlfilter_core.deduplication.borders import visits

    teller = ProgressTeller()
    probes = [np.empty((0, embeddings.dim), np.float32)]
    with (
        open_partitions(vectors_file, search.n_buckets) as of_vectors,
        open_partitions(visits_file, search.n_buckets) as of_visits,
    ):
        for start, vectors in _slices(embeddings):
            probes.append(vectors[is_probe[start : start + len(vectors)]])
            found = visits(torch.from_numpy(vectors).to(cells.device), cells, search.threshold, search.neighbours)
            homes, visitors, visited = (each.cpu().numpy() for each in found)
            rows = np.arange(len(vectors), dtype=np.int64)
            has_home = homes >= 0
            away = search.buckets[visited] != search.buckets[homes[visitors]]
            copies = np.unique(np.stack([visitors[away], search.buckets[visited[away]]], axis=1), axis=0)
            which = np.concatenate([rows[has_home], copies[:, 0]])
            of_vectors.add(
                {
                    "row": which + start,
                    "cell": np.concatenate([homes[has_home], np.full(len(copies), COPY, np.int64)]),
                    "vector": vectors[which],
                },
                np.concatenate([search.buckets[homes[has_home]], copies[:, 1]]),
            )
            of_visits.add({"row": visitors + start, "cell": visited}, search.buckets[visited])
            if teller.is_due():
                done = start + len(vectors)
                teller.tell(Progress(file.name, done, share=done / embeddings.n_rows))
    return np.concatenate(probes)


def _slices(embeddings: EmbeddingFile) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Yields the first row and the directions of many rows at a time."""
    some: list[NDArray[np.float32]] = []
    start = n_rows = 0
    for rows, vectors in directions(embeddings):
        some.append(vectors)
        n_rows += len(vectors)
        if n_rows * vectors.shape[1] * 4 >= SLICE_BYTES or rows.stop == embeddings.n_rows:
            yield start, np.concatenate(some)
            start, n_rows, some = start + n_rows, 0, []


def _drawn(stem: str, n_rows: int, seed: int, share: float) -> NDArray[np.bool_]:
    """Returns which rows are drawn, bool (n_rows,); it depends on the seed, the file's name and the row alone."""
    if share >= 1:
        return np.ones(n_rows, bool)
    numbers = numbers_of_rows(stem, np.arange(n_rows), b"probes" + seed.to_bytes(4, "big"))
    return np.asarray(numbers < np.uint64(share * 2**64))


def _facts(file: TaskFile, request: DistributeRequest) -> Mapping[str, Any] | None:
    """Returns the facts of divided rows; None where there are none for this request."""
    try:
        with open(request.output(file), "rb") as opened, zipfile.ZipFile(opened) as archive:
            found: dict[str, Any] = orjson.loads(column(archive, "facts", np.uint8).data)
    except (OSError, *DAMAGED) as error:
        if not is_damage(error):
            raise
        return None
    asked = orjson.loads(orjson.dumps(request.facts(file)))
    return found if all(found.get(name) == value for name, value in asked.items()) else None


def _report(
    file: TaskFile,
    request: DistributeRequest,
    status: Literal["divided", "skipped"],
    documents: int,
    seconds: float = 0.0,
) -> DistributeReport:
    return DistributeReport(file.relative, str(request.output(file)), status, documents, seconds)
