"""A cluster job: a sample of every file, centroids, the cluster of every document, the list of clusters."""

import functools
import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from mlfilter_core.clustering.assign_clusters import (
    AssignedCentroids,
    ClusterReport,
    ClusterRequest,
    cluster_file,
    finished_clusters,
)
from mlfilter_core.clustering.find_centroids import (
    LEAST_VECTORS_PER_CELL,
    TEXTS_PER_CLUSTER,
    VECTORS_PER_CLUSTER,
    CentroidsReport,
    CentroidsRequest,
    automatic_clusters,
    cells_for,
    corpus_of,
    find_centroids_of,
    finished_centroids,
    report_of,
)
from mlfilter_core.clustering.list_clusters import UnfinishedFileError, list_clusters
from mlfilter_core.clustering.sample import (
    SAMPLE_FOLDER,
    SampleReport,
    SampleRequest,
    finished_sample,
    make_sample,
)
from mlfilter_core.config.clustering import ClusterJob, ClusterParameters
from mlfilter_core.embedding_store.centroids import load_centroids, load_same_centroids
from mlfilter_core.embedding_store.layout import EMBEDDING_SUFFIXES
from mlfilter_core.embedding_store.reader import EmbeddingFile
from mlfilter_core.errors import ConfigError, FileError, OutputConflictError
from mlfilter_core.files.publishing import unless_overwritten
from mlfilter_core.files.task_files import TaskFile, TaskFiles, evenly_spaced, find_files, shard, single_task
from mlfilter_core.work.workload import Work, Workload

GB = 10**9
SHARE_OF_MEMORY = 0.4  # for the vectors: they are in memory as float32, and as float16 two to three times
N_MEASURED = 100  # files whose rows are counted, to estimate those of all
MARGIN = 1.2  # of the estimate

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SampleWork(Work[SampleReport]):
    """The first step of a cluster job: the sample of a file."""

    request: SampleRequest

    def outputs(self, file: TaskFile) -> Sequence[Path]:
        return (self.request.output(file),)

    def finished(self, file: TaskFile, read_content: bool) -> SampleReport | None:
        return finished_sample(file, self.request)

    def make(self, file: TaskFile) -> SampleReport:
        return make_sample(file, self.request)


@dataclass(frozen=True)
class CentroidsWork(Work[CentroidsReport]):
    """The second step: the centroids; the file of its one task is the file of centroids."""

    IMPORTS: ClassVar[Sequence[str]] = ("torch",)

    params: ClusterParameters
    request: CentroidsRequest
    sample_request: SampleRequest
    files: TaskFiles

    def samples(self) -> Workload[SampleReport]:
        """Returns the first step of the job, which draws what this work needs."""
        request = self.sample_request
        return Workload("sample", self.files, SampleWork(request), request.folder, is_step=True)

    def workload(self) -> Workload[CentroidsReport]:
        """Returns the second step of the job."""
        return Workload("centroids", [single_task(self.request.path)], self, self.params.output_dir, is_step=True)

    def outputs(self, file: TaskFile) -> Sequence[Path]:
        return (self.request.path,)

    def finished(self, file: TaskFile, read_content: bool) -> CentroidsReport | None:
        centroids = unless_overwritten(lambda: finished_centroids(self.request), self.params.overwrite)
        return None if centroids is None else report_of(self.request, centroids)

    def make(self, file: TaskFile) -> CentroidsReport:
        from mlfilter_core.compute.devices import pick_device

        device = pick_device(self.params.device)
        if device.type == "mps":  # has no float64
            device = pick_device("cpu")
        self.params.list_file.unlink(missing_ok=True)  # it has the names and sizes of the clusters before
        report = find_centroids_of(self.files, self.sample_request, self.request, device)
        remove_samples(self.params)
        return report


@dataclass(frozen=True)
class ClusterWork(Work[ClusterReport]):
    """The third step: the cluster of each document of a file."""

    IMPORTS: ClassVar[Sequence[str]] = ("torch", "pyarrow.parquet")
    REPORT = ClusterReport

    params: ClusterParameters
    request: ClusterRequest

    def made_by(self) -> dict[str, Any]:
        return self.request.provenance()

    def outputs(self, file: TaskFile) -> Sequence[Path]:
        return (self.request.output(file),)

    def finished(self, file: TaskFile, read_content: bool) -> ClusterReport | None:
        return unless_overwritten(lambda: finished_clusters(file, self.request, read_content), self.params.overwrite)

    def prepare(self, files: Sequence[TaskFile]) -> None:
        self.params.list_file.unlink(missing_ok=True)  # it would not fit files that are about to change

    def make(self, file: TaskFile) -> ClusterReport:
        params = self.params
        assigned = _assigned(params.centroids_file, self.request.centroids_sha256, params.device)
        return cluster_file(file, self.request, assigned)

    def conclude(self) -> None:
        """Writes the list of clusters, unless other runs have yet to finish some of the files."""
        params = self.params
        remove_samples(params)  # of a run that was killed once it had found the centroids
        outputs = (self.request.output(file) for file in _files(params))
        centroids = load_same_centroids(params.centroids_file, self.request.centroids_sha256)
        try:
            list_clusters(outputs, centroids, params.list_file)
        except UnfinishedFileError as error:
            _log.info("the last of several runs writes %s: %s", params.list_file, error)

    def is_concluded(self) -> bool:
        return self.params.list_file.exists()


def cluster_course(job: ClusterJob) -> Iterator[Workload[Any]]:
    """Yields the steps of a cluster job, one after another; the first two only where centroids have yet to be found.

    Raises:
        ConfigError: As `centroids_to_find` and `assignment_workload`.
    """
    work = centroids_to_find(job)
    if work is not None:
        yield work.samples()
        yield work.workload()
    yield assignment_workload(job)


def centroids_to_find(job: ClusterJob) -> CentroidsWork | None:
    """Returns the work of finding centroids; None where there are some.

    Raises:
        ConfigError: The folder of embeddings is missing or empty, or a file of centroids is broken, or was found with
            other settings or on other files.
    """
    params = job.params
    if params.centroids is not None:
        load_centroids(params.centroids)
        return None
    files = _files(params)
    request = _centroids_request(params, files)
    try:
        if unless_overwritten(lambda: finished_centroids(request), params.overwrite) is not None:
            return None
    except OutputConflictError as error:
        raise ConfigError(str(error)) from error
    return CentroidsWork(params, request, _sample_request(params, files), files)


def cluster_workload(job: ClusterJob) -> Workload[ClusterReport]:
    """Returns the third step of a cluster job, which depends on the others.

    Raises:
        ConfigError: The folder of embeddings is missing or empty, or centroids have yet to be found; or as
            `centroids_to_find`.
    """
    if centroids_to_find(job) is not None:
        raise ConfigError(f"{job.params.centroids_file} has yet to be found; run the job")
    return assignment_workload(job)


def assignment_workload(job: ClusterJob) -> Workload[ClusterReport]:
    """Returns the third step of a cluster job; the corpus may have grown since the centroids were found.

    Raises:
        ConfigError: The folder of embeddings or the file of centroids is missing.
    """
    params = job.params
    request = ClusterRequest(
        params.clusters_dir, params.hdf5_dataset_name, load_centroids(params.centroids_file).sha256
    )
    files = shard(_files(params), job.local.ranks, job.local.tasks)
    return Workload("cluster", files, ClusterWork(params, request), params.clusters_dir)


def remove_samples(params: ClusterParameters) -> None:
    """Removes the samples, which are of no use once centroids are found."""
    shutil.rmtree(params.clusters_dir / SAMPLE_FOLDER, ignore_errors=True)


def _files(params: ClusterParameters) -> TaskFiles:
    return find_files(params.embeddings_directory, params.glob_pattern, EMBEDDING_SUFFIXES, written_by="embed")


def _centroids_request(params: ClusterParameters, files: TaskFiles) -> CentroidsRequest:
    n_clusters = None if params.n_clusters == "auto" else params.n_clusters
    return CentroidsRequest(
        *(params.centroids_file, n_clusters, params.seed, params.hdf5_dataset_name),
        most_vectors_bytes=int(params.memory_gb * GB * SHARE_OF_MEMORY),
        corpus=corpus_of(files),
    )


def _sample_request(params: ClusterParameters, files: TaskFiles) -> SampleRequest:
    n_rows, dim = estimate(files, params.hdf5_dataset_name)
    expected = automatic_clusters(n_rows) if params.n_clusters == "auto" else params.n_clusters
    n_wanted = max(VECTORS_PER_CLUSTER * expected, LEAST_VECTORS_PER_CELL * cells_for(n_rows))
    n_vectors = min(MARGIN * n_wanted, params.memory_gb * GB * SHARE_OF_MEMORY / (4 * dim))
    return SampleRequest(
        params.clusters_dir / SAMPLE_FOLDER,
        params.hdf5_dataset_name,
        params.seed,
        _share(n_vectors, n_rows),
        _share(min(n_vectors, TEXTS_PER_CLUSTER * expected), n_rows),
        params.source_dir,
        params.describe_by,
    )


def _share(n: float, n_all: int) -> float:
    """Returns the share that gives n of all, at most 1."""
    return min(1.0, n / max(1, n_all))


def estimate(files: TaskFiles, group: str) -> tuple[int, int]:
    """Returns the number of documents of all files, estimated from some, and the width of their embeddings.

    Raises:
        ConfigError: None of these can be read.
    """
    n_rows = n_bytes = dim = 0
    for file in evenly_spaced(files, N_MEASURED):
        with suppress(FileError, OSError), EmbeddingFile(file.path, group) as embeddings:
            n_rows, n_bytes, dim = n_rows + embeddings.n_rows, n_bytes + file.size(), embeddings.dim
    if not n_bytes:
        raise ConfigError(f"{files[0].folder}: none of its files of embeddings can be read; embed them again")
    all_bytes = sum(file.size() for file in files) if len(files) > N_MEASURED else n_bytes
    return round(n_rows * all_bytes / n_bytes), dim


@functools.lru_cache(maxsize=1)
def _assigned(path: Path, sha256: str, device: str) -> AssignedCentroids:
    """Returns the centroids on a device, loaded once per worker process.

    Raises:
        ConfigError: They are not those with this digest.
    """
    from mlfilter_core.compute.devices import pick_device

    return AssignedCentroids(load_same_centroids(path, sha256), pick_device(device))
