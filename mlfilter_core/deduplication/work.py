"""A deduplication job: rows in buckets, pairs of each bucket, groups, the duplicates of every file."""

import functools
import hashlib
import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import orjson
from numpy.typing import NDArray

from mlfilter_core.annotating.annotated_format import SUFFIXES
from mlfilter_core.clustering.find_centroids import corpus_of
from mlfilter_core.clustering.work import estimate
from mlfilter_core.config.deduplication import EXACT, DeduplicationJob, DeduplicationParameters
from mlfilter_core.deduplication.compare import CompareReport, CompareRequest, compare, finished_comparison
from mlfilter_core.deduplication.distribute import (
    DistributeReport,
    DistributeRequest,
    Search,
    annotated_file,
    distribute,
    finished_distribution,
    search_of,
)
from mlfilter_core.deduplication.mark_duplicates import (
    ASKED_BY,
    DeduplicateReport,
    MarkRequest,
    finished_marks,
    mark_duplicates,
)
from mlfilter_core.deduplication.preview import LEVELS
from mlfilter_core.deduplication.settle import (
    Duplicates,
    SettleReport,
    SettleRequest,
    finished_groups,
    load_duplicates,
    report_of,
    settle,
)
from mlfilter_core.embedding_store.centroids import centroids_beside, load_centroids
from mlfilter_core.embedding_store.duplicate_file import SUFFIX
from mlfilter_core.embedding_store.layout import EMBEDDING_SUFFIXES
from mlfilter_core.embedding_store.reader import EmbeddingFile
from mlfilter_core.embedding_store.source_documents import WHOLE_DOCUMENT, SourceDocuments
from mlfilter_core.errors import AnnotationError, ConfigError, EmbeddingFileError, OutputConflictError, SourceError
from mlfilter_core.files.publishing import check_apart, unless_overwritten
from mlfilter_core.files.task_files import TaskFile, TaskFiles, evenly_spaced, find_files, shard, single_task
from mlfilter_core.work.output_folders import without_input
from mlfilter_core.work.workload import Work, Workload

N_CHECKED = 3  # files whose sources are looked for before a run
MANY_MORE = 1.5  # times the documents of the clusters
WORK_FOLDER, TRIAL_FOLDER = ".rows", ".trial"
# Hashes take a small part of the bytes of embeddings, so that those of a bucket fit in memory. Arbitrary.
MOST_HASH_BUCKETS, BYTES_PER_HASH_BUCKET = 256, 1 << 32


_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DistributeWork(Work[DistributeReport]):
    """The first step: the rows of a file in buckets."""

    IMPORTS: ClassVar[Sequence[str]] = ("torch", "pyarrow")

    request: DistributeRequest
    device: str

    def outputs(self, file: TaskFile) -> Sequence[Path]:
        return (self.request.output(file),)

    def finished(self, file: TaskFile, read_content: bool) -> DistributeReport | None:
        return finished_distribution(file, self.request)

    def make(self, file: TaskFile) -> DistributeReport:
        from mlfilter_core.compute.devices import pick_device

        return distribute(file, self.request, pick_device(self.device))


@dataclass(frozen=True)
class CompareWork(Work[CompareReport]):
    """The second step: the pairs of a bucket."""

    IMPORTS: ClassVar[Sequence[str]] = ("torch", "pyarrow")

    request: CompareRequest
    device: str

    def outputs(self, file: TaskFile) -> Sequence[Path]:
        return (self.request.output(file),)

    def finished(self, file: TaskFile, read_content: bool) -> CompareReport | None:
        return finished_comparison(file, self.request)

    def make(self, file: TaskFile) -> CompareReport:
        from mlfilter_core.compute.devices import pick_device

        return compare(file, self.request, pick_device(self.device))


@dataclass(frozen=True)
class SettleWork(Work[SettleReport]):
    """The third step: the groups of the corpus; the file of its one task is the file of duplicates."""

    IMPORTS: ClassVar[Sequence[str]] = ("pyarrow", "scipy.sparse.csgraph")

    params: DeduplicationParameters
    request: SettleRequest

    def steps(self) -> list[Workload[Any]]:
        """Returns the steps that find the groups, in order."""
        params, compared = self.params, self.request.compared
        distributing = DistributeWork(compared.divided, params.device)
        comparing = CompareWork(compared, params.device)
        return [
            Workload("divide", compared.files, distributing, compared.divided.folder, is_step=True),
            Workload("compare", compared.tasks(), comparing, compared.folder, is_step=True),
            Workload("group", [single_task(self.request.path)], self, params.output_dir, is_step=True),
        ]

    def outputs(self, file: TaskFile) -> Sequence[Path]:
        return (self.request.path, self.request.summary)

    def finished(self, file: TaskFile, read_content: bool) -> SettleReport | None:
        found = unless_overwritten(lambda: finished_groups(self.request), self.params.overwrite)
        return None if found is None else report_of(self.request, found.made)

    def make(self, file: TaskFile) -> SettleReport:
        return settle(self.request)


@dataclass(frozen=True)
class DeduplicateWork(Work[DeduplicateReport]):
    """The fourth step: the duplicates of a file, and its documents that are kept."""

    IMPORTS: ClassVar[Sequence[str]] = ("pyarrow.parquet",)
    REPORT = DeduplicateReport

    params: DeduplicationParameters
    request: MarkRequest

    def made_by(self) -> dict[str, Any]:
        return self.request.provenance()

    def outputs(self, file: TaskFile) -> Sequence[Path]:
        return self.request.outputs(file)

    def evidence(self, file: TaskFile) -> Sequence[Path]:
        annotated = self.request.annotated_file(file)
        return *super().evidence(file), *self.request.others(file), *(() if annotated is None else (annotated.path,))

    def finished(self, file: TaskFile, read_content: bool) -> DeduplicateReport | None:
        return unless_overwritten(lambda: finished_marks(file, self.request, read_content), self.params.overwrite)

    def make(self, file: TaskFile) -> DeduplicateReport:
        duplicates = _duplicates(self.params.groups_file, self.request.groups_sha256)
        return mark_duplicates(file, self.request, duplicates)

    def conclude(self) -> None:
        """Removes what the steps before have left, unless other runs have yet to finish some of the files."""
        _warn_of_files_without_embeddings(self.params)
        if all(self.request.output(file).exists() for file in _files(self.params)):
            for folder in self._leftovers():
                shutil.rmtree(folder, ignore_errors=True)

    def is_concluded(self) -> bool:
        return not any(folder.exists() for folder in self._leftovers())

    def _leftovers(self) -> list[Path]:
        return [self.params.duplicates_dir / name for name in (WORK_FOLDER, TRIAL_FOLDER)]


def groups_to_find(job: DeduplicationJob) -> SettleWork | None:
    """Returns the work of finding the groups; None where they were found.

    Raises:
        ConfigError: The folder of embeddings is missing or empty, the clusters are missing or not complete, or the
            groups were found with other settings or on other files.
    """
    work = _settle_work(job.params)
    _check_inputs(job.params, work.request.compared.files)
    try:
        is_finished = work.finished(single_task(work.request.path), read_content=False) is not None
    except OutputConflictError as error:
        raise ConfigError(str(error)) from error
    return None if is_finished else work


def trial_of(job: DeduplicationJob) -> SettleWork:
    """Returns the work whose first two steps find the pairs that `preview` needs, in a folder of their own.

    Raises:
        ConfigError: As `groups_to_find`, or `threshold: exact`, which has no others.
    """
    if job.params.threshold == EXACT:
        raise ConfigError("params.threshold: exact has no other thresholds to show; set a number, such as 0.9")
    return _settle_work(job.params.model_copy(update={"threshold": LEVELS[0]}), TRIAL_FOLDER, LEVELS)


def deduplicate_course(job: DeduplicationJob) -> Iterator[Workload[Any]]:
    """Yields the steps of a deduplication job; the first three only where groups have yet to be found.

    Raises:
        ConfigError: As `groups_to_find` and `marking_workload`.
    """
    work = groups_to_find(job)
    if work is not None:
        yield from work.steps()
    yield marking_workload(job)


def deduplicate_workload(job: DeduplicationJob) -> Workload[DeduplicateReport]:
    """Returns the fourth step of a deduplication job, which depends on the others.

    Raises:
        ConfigError: Groups have yet to be found; or as `groups_to_find`.
    """
    if groups_to_find(job) is not None:
        raise ConfigError(f"{job.params.groups_file} has yet to be found; run the job")
    return marking_workload(job)


def marking_workload(job: DeduplicationJob) -> Workload[DeduplicateReport]:
    """Returns the fourth step of a deduplication job.

    Raises:
        ConfigError: The folder of embeddings or the file of duplicates is missing.
    """
    params = job.params
    files = _files(params)
    request = MarkRequest(
        params.duplicates_dir,
        params.deduplicated_dir,
        params.write_documents,
        params.hdf5_dataset_name,
        load_duplicates(params.groups_file).made["sha256"],
        params.annotated_directory,
        params.source_dir,
        params.compression,
    )
    work = DeduplicateWork(params, request)
    return Workload("deduplicate", shard(files, job.local.ranks, job.local.tasks), work, params.duplicates_dir)


def _files(params: DeduplicationParameters) -> TaskFiles:
    return find_files(params.embeddings_directory, params.glob_pattern, EMBEDDING_SUFFIXES, written_by="embed")


def _settle_work(
    params: DeduplicationParameters, folder: str = WORK_FOLDER, levels: Sequence[float] = ()
) -> SettleWork:
    files = _files(params)
    divided = DistributeRequest(
        params.duplicates_dir / folder,
        params.hdf5_dataset_name,
        _search(params, files),
        params.prefer,
        params.score,
        params.annotated_directory,
        params.seed,
        n_hash_buckets=min(MOST_HASH_BUCKETS, 1 + sum(file.size() for file in files) // BYTES_PER_HASH_BUCKET),
    )
    if not isinstance(params.threshold, str):
        levels = levels or [params.threshold]
    compared = CompareRequest(files, divided, levels, _versions(files))
    corpus = corpus_of(files)
    if params.score is not None:
        corpus["scores"] = corpus_of(annotated_file(file, params.annotated_directory) for file in files)["sha256"]
    request = SettleRequest(
        params.groups_file, params.summary_file, params.threshold, compared, corpus, params.source_dir
    )
    return SettleWork(params, request)


def _search(params: DeduplicationParameters, files: TaskFiles) -> Search | None:
    """Returns how near-duplicates are searched.

    Raises:
        ConfigError: The clusters are missing, or not all files have theirs.
    """
    if params.threshold == EXACT:
        return None
    assert params.clusters_directory is not None
    path = params.centroids or centroids_beside(params.clusters_directory)
    documents = _documents(params.clusters_directory, len(load_centroids(path).vectors))
    n_rows, _ = estimate(files, params.hdf5_dataset_name)
    if n_rows > MANY_MORE * documents.sum():
        _log.warning(
            "the clusters have %d documents, and the embeddings about %d; cluster all of them first, so that each "
            "document is compared with its neighbours",
            *(documents.sum(), n_rows),
        )
    return search_of(params, path, documents, n_rows)


def _documents(clusters_directory: Path, n_clusters: int) -> NDArray[np.int64]:
    """Returns the documents of each cluster, int64 (n_clusters,), from the list of clusters."""
    path = clusters_directory.with_name(f"{clusters_directory.name}.jsonl")
    documents = np.zeros(n_clusters, np.int64)
    try:
        with path.open("rb") as lines:
            for row in map(orjson.loads, lines):
                documents[row["cluster"]] = row["documents"]
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise ConfigError(
            f"params.clusters_directory: {path} cannot be read ({error}); it is there once a cluster job has finished "
            "all files"
        ) from error
    return documents


def _check_inputs(params: DeduplicationParameters, files: TaskFiles) -> None:
    """Checks, for some files, what the last step reads, before the first one begins.

    Raises:
        ConfigError: Outputs would replace inputs, or annotated files or sources are missing.
    """
    for name, folder in (("annotated_directory", params.annotated_directory), ("source_dir", params.source_dir)):
        for written in (params.duplicates_dir, params.deduplicated_dir):
            if folder is not None:
                check_apart(f"params.{name}", folder, written)
    try:
        for file in evenly_spaced(files, N_CHECKED):
            if params.annotated_directory is not None:
                annotated_file(file, params.annotated_directory)
            elif params.write_documents:
                _check_source(file, params)
    except (AnnotationError, SourceError) as error:
        raise ConfigError(f"{error}; write_documents: false lists the duplicates alone") from error


def _check_source(file: TaskFile, params: DeduplicationParameters) -> None:
    """Checks that the source of a file can be opened; a broken file is a matter of its task.

    Raises:
        AnnotationError: The file does not name its source.
        SourceError: The source is missing, or has another size.
    """
    with suppress(EmbeddingFileError, OSError), EmbeddingFile(file.path, params.hdf5_dataset_name) as embeddings:
        SourceDocuments(embeddings, params.source_dir, [WHOLE_DOCUMENT], asked_by=ASKED_BY).__exit__()


def _warn_of_files_without_embeddings(params: DeduplicationParameters) -> None:
    """Warns of outputs whose files of embeddings are gone: readers of the folders still read them."""
    inputs = params.embeddings_directory, EMBEDDING_SUFFIXES
    for folder, suffixes in ((params.duplicates_dir, (SUFFIX,)), (params.deduplicated_dir, tuple(SUFFIXES.values()))):
        for path in without_input(folder, suffixes, *inputs):
            _log.warning("%s: its embeddings are gone; remove it if its documents are not wanted", path)


def _versions(files: TaskFiles) -> str:
    """Returns a digest of the names, sizes and modification times of files."""
    digest = hashlib.sha256()
    for file in files:
        status = file.path.stat()
        digest.update(f"{file.stem}\0{status.st_size}\0{status.st_mtime_ns}\0".encode(errors="surrogateescape"))
    return digest.hexdigest()


@functools.lru_cache(maxsize=1)
def _duplicates(path: Path, sha256: str) -> Duplicates:
    """Returns the duplicates of the corpus, loaded once per worker process.

    Raises:
        ConfigError: They are not those with this digest.
    """
    duplicates = load_duplicates(path)
    if duplicates.made["sha256"] != sha256:
        raise ConfigError(f"{path} was changed during the run; run the job again")
    return duplicates
