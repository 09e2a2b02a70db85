"""The work of an annotation job on each file."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, ClassVar

from mlfilter_core.annotating.annotate_file import annotate_file, score_columns
from mlfilter_core.annotating.annotate_parts import (
    MIN_PART_ROWS,
    annotate_in_parts,
    annotate_part,
    part_outputs,
    parts_of,
)
from mlfilter_core.annotating.annotate_report import AnnotateReport
from mlfilter_core.annotating.annotate_request import AnnotateRequest, finished_annotation
from mlfilter_core.annotating.annotated_format import remove_leftover_parts
from mlfilter_core.annotating.staged_heads import with_staged_heads
from mlfilter_core.config.annotation import AnnotationJob, AnnotationPipelineParameters, Scoring
from mlfilter_core.embedding_store.centroids import centroids_beside
from mlfilter_core.embedding_store.clusters_of_rows import find_clusters
from mlfilter_core.embedding_store.fingerprint import OneEncoder, fingerprint
from mlfilter_core.embedding_store.layout import CLUSTER_KEYS, EMBEDDING_SUFFIXES
from mlfilter_core.embedding_store.output_values import check_output_keys, joined_keys
from mlfilter_core.embedding_store.reader import EmbeddingFile
from mlfilter_core.errors import EmbeddingFileError
from mlfilter_core.files.part_files import n_parts_before
from mlfilter_core.files.publishing import unless_overwritten
from mlfilter_core.files.task_files import WHOLE, TaskFile, evenly_spaced, find_files, shard
from mlfilter_core.heads.checkpoint_files import find_head, head_digests
from mlfilter_core.heads.chunk_scores import ChunkCombination
from mlfilter_core.heads.light_widths import check_layers
from mlfilter_core.heads.scores import INTEGER_PREFIX, LABEL_PREFIX
from mlfilter_core.work.staged_work import staged, stores_of
from mlfilter_core.work.workload import Work, Workload

if TYPE_CHECKING:
    from mlfilter_core.heads.head import Head

# Files whose encoders are compared before the first is scored; each has to be opened, which takes 1 to 3 ms.
MOST_CHECKED = 10_000

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AnnotateWork(Work[AnnotateReport]):
    """The work of an annotation job on each file.

    Attributes:
        params: Parameters of the job.
        request: Request that they make.
        one_encoder: The encoder that `prepare` found, which each task compares that of its file with.
    """

    IMPORTS: ClassVar[Sequence[str]] = ("mlfilter_core.heads.checkpoint_formats",)
    REPORT = AnnotateReport

    params: AnnotationPipelineParameters
    request: AnnotateRequest
    one_encoder: OneEncoder = field(default_factory=OneEncoder, compare=False)

    @property
    def divides_all(self) -> bool:
        return self.params.split != "auto"

    def divide(self, file: TaskFile, n_parts: int) -> Sequence[TaskFile]:
        if self.params.split == "auto":
            return parts_of(file, self.request, n_parts, MIN_PART_ROWS)
        return parts_of(file, self.request, int(self.params.split))

    def made_by(self) -> dict[str, Any]:
        return self.request.provenance()

    def outputs(self, file: TaskFile) -> Sequence[Path]:
        if file.part != WHOLE:
            return part_outputs(file, self.request)
        return self.request.output(file), self.request.provenance_file(file)

    def finished(self, file: TaskFile, read_content: bool) -> AnnotateReport | None:
        return unless_overwritten(lambda: finished_annotation(file, self.request, read_content), self.params.overwrite)

    def further_files(self, file: TaskFile) -> Sequence[Path]:
        request = self.request
        if request.source_dir is None:
            return ()
        columns = score_columns(heads_of_process(self.params, request), request)
        others = (*columns.names, *(CLUSTER_KEYS if request.clusters is not None else ()))
        try:
            with EmbeddingFile(file.path, request.group) as embeddings:
                if not joined_keys(embeddings, request.output_keys, others) or embeddings.provenance is None:
                    return ()
                relative = PurePosixPath(embeddings.provenance.source["path"])
        except EmbeddingFileError:  # its task reports it
            return ()
        return () if relative.is_absolute() or ".." in relative.parts else (request.source_dir / relative,)

    def check(self, files: Sequence[TaskFile]) -> None:
        """Checks the output keys, and the widths of heads as far as their files show them.

        Raises:
            HeadError: A head does not fit the first readable file.
            ConfigError: An output key is not found, or no file has clusters.
        """
        self._check_output_keys(files, ())
        dim, where = _first_width(files, self.request.group)
        if dim is not None:
            for name, checkpoint in self.params.regression_head_checkpoints.items():
                check_layers(name, find_head(name, checkpoint), dim, where)

    def prepare(self, files: Sequence[TaskFile]) -> None:
        """Checks that the heads load and fit every readable file of a run; unreadable files fail in their tasks.

        Of very many files some are looked at, evenly spaced, and each of the others by its task.

        Raises:
            HeadError: A checkpoint is corrupted, contains code, or does not fit the embeddings; two scores would have
                the same name, or an ensemble names a score that does not exist.
            ConfigError: Two files were made by different encoders, an output key is not found, or no file has clusters.
        """
        heads = load_heads(self.params)
        columns = score_columns(heads, self.request)
        _check_contract(heads, evenly_spaced(files, MOST_CHECKED), self.request, self.one_encoder)
        self._check_output_keys(files, columns.names)

    def make(self, file: TaskFile) -> AnnotateReport:
        with EmbeddingFile(file.path, self.request.group) as embeddings:
            self.one_encoder.check(file.path, fingerprint(embeddings.provenance))
        annotate = annotate_in_parts if n_parts_before(self.request.output(file)) else annotate_file
        annotate = annotate if file.part == WHOLE else annotate_part
        report = annotate(file, self.request, heads_of_process(self.params, self.request))
        if file.part == WHOLE:
            remove_leftover_parts(file, self.request.output_dir)
        return report

    def _check_output_keys(self, files: Sequence[TaskFile], columns: Sequence[str]) -> None:
        """Looks for the output keys that are no scores, given the names of the scores once the heads are loaded."""
        request, keys = self.request, self.request.output_keys
        if not columns:
            of_scores = (request.score_prefix, LABEL_PREFIX, INTEGER_PREFIX)
            keys = tuple(key for key in keys if not key.startswith(of_scores))
        check_output_keys(files, request.group, keys, columns, request.source_dir, request.cluster_values)


def annotation_workload(job: AnnotationJob) -> Workload[AnnotateReport]:
    """Returns the workload of an annotation job.

    Raises:
        ConfigError: The folder of embeddings is missing, or two of its files would share an output name; or as
            `annotate_work`.
        HeadError: As `annotate_work`.
    """
    params = with_staged_heads(job).params
    store = stores_of(job).get("embeddings_directory")
    listing = store.listing() if store else None
    files = find_files(
        params.embeddings_directory, params.glob_pattern, EMBEDDING_SUFFIXES, listing=listing, written_by="embed"
    )
    work = annotate_work(params)
    own_files = shard(files, job.local.ranks, job.local.tasks)
    workload = Workload("annotate", own_files, work, params.annotated_output_dir)
    return staged(workload, job, "embeddings_directory")


def annotate_work(params: AnnotationPipelineParameters) -> AnnotateWork:
    """Returns the work of an annotation job.

    Raises:
        HeadError: A checkpoint is missing.
        ConfigError: The file of the centroids of the clusters is missing or broken.
    """
    group = params.hdf5_dataset_name
    request = annotate_request(params, params.annotated_output_dir, group, params.source_dir)
    if params.clusters_directory is not None:
        centroids = params.centroids or centroids_beside(params.clusters_directory)
        request = replace(request, clusters=find_clusters(params.clusters_directory, centroids))
    return AnnotateWork(params, request)


def load_heads(params: Scoring) -> list["Head"]:
    """Loads the heads of a job onto its device.

    Raises:
        HeadError: A checkpoint is missing, corrupted, or contains code.
    """
    import torch

    from mlfilter_core.compute.devices import pick_device
    from mlfilter_core.heads.checkpoint_formats import load_head

    device, dtype = pick_device(params.device), getattr(torch, params.model_dtype)
    checkpoints = params.regression_head_checkpoints
    return [load_head(name, path).to(device, dtype) for name, path in checkpoints.items()]


def annotate_request(params: Scoring, output_dir: Path, group: str, source_dir: Path | None = None) -> AnnotateRequest:
    """Returns the request that the parameters make.

    Raises:
        HeadError: A checkpoint is missing.
    """
    return AnnotateRequest(
        output_dir=output_dir,
        head_sha256=head_digests(params.regression_head_checkpoints),
        output_keys=params.output_keys,
        score_prefix=params.score_prefix,
        group=group,
        batch_size=params.batch_size,
        model_dtype=params.model_dtype,
        compression=params.compression,
        source_dir=source_dir,
        allow_mismatched_head=params.allow_mismatched_head,
        ensembles=params.ensembles,
        integer_scales=params.integer_scales,
        combine=ChunkCombination(params.score_combine, params.score_top_k),
    )


_heads_of_process: dict[str, list["Head"]] = {}


def heads_of_process(params: Scoring, request: AnnotateRequest) -> list["Head"]:
    """Returns the heads, loaded once per worker process and version of their checkpoints."""
    key = repr((params.regression_head_checkpoints, request.head_sha256, params.device, params.model_dtype))
    if key not in _heads_of_process:
        _heads_of_process.clear()
        _heads_of_process[key] = load_heads(params)
    return _heads_of_process[key]


def _first_width(files: Iterable[TaskFile], group: str) -> tuple[int | None, str]:
    """Returns the width of the embeddings of the first readable file, and its path."""
    for file in files:
        try:
            with EmbeddingFile(file.path, group) as embeddings:
                return embeddings.dim, str(file.path)
        except (EmbeddingFileError, OSError):  # its task reports it
            continue
    return None, ""


def _check_contract(
    heads: list["Head"], files: Iterable[TaskFile], request: AnnotateRequest, one_encoder: OneEncoder
) -> None:
    from mlfilter_core.heads.head import check_heads_fit, find_mismatched_heads

    said: set[str] = set()
    for file in files:
        try:
            with EmbeddingFile(file.path, request.group) as embeddings:
                dim, made_by = embeddings.dim, fingerprint(embeddings.provenance)
        except (EmbeddingFileError, OSError):  # its task reports it
            continue
        one_encoder.check(file.path, made_by)
        check_heads_fit(heads, dim, str(file.path))
        mismatched = find_mismatched_heads(heads, made_by, str(file.path), request.allow_mismatched_head)
        for name in mismatched.keys() - said:
            _log.warning("allow_mismatched_head: head %s was trained on other embeddings: %s", name, mismatched[name])
            said.add(name)
