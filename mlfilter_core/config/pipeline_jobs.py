"""The jobs of a pipeline, each of which reads what those before it write."""

from dataclasses import dataclass
from pathlib import Path

from mlfilter_core.config.annotation import AnnotationJob
from mlfilter_core.config.clustering import ClusterJob
from mlfilter_core.config.deduplication import DeduplicationJob
from mlfilter_core.config.embedding import EmbeddingJob
from mlfilter_core.config.filtering import FilterJob
from mlfilter_core.config.training import TrainingJob
from mlfilter_core.embedding_store.centroids import centroids_beside, load_centroids
from mlfilter_core.errors import ConfigError
from mlfilter_core.files.urls import shown_path


@dataclass(frozen=True)
class PipelineJobs:
    """The jobs of a pipeline, in the order of its steps; None for a step that is left out."""

    embed: EmbeddingJob
    cluster: ClusterJob | None
    train: TrainingJob | None
    annotate: AnnotationJob
    deduplicate: DeduplicationJob | None
    filter: FilterJob | None

    def check(self) -> None:
        """Checks that each job reads what the steps before it write, or what is there if no step makes it.

        Raises:
            ConfigError: A job reads another folder than the step before writes, or clusters that no step makes are
                missing.
        """
        embeddings = self.embed.params.embedding_output_dir
        for step, job in (
            ("cluster", self.cluster),
            ("train", self.train),
            ("annotate", self.annotate),
            ("deduplicate", self.deduplicate),
            ("filter", self.filter),
        ):
            if job is not None:
                _check_reads(step, "embeddings_directory", job.params.embeddings_directory, "embed", embeddings)
        self._check_clusters()
        self._check_filter(self._check_deduplicate())

    def _check_clusters(self) -> None:
        if self.cluster is not None and self.cluster.params.centroids is not None:
            load_centroids(self.cluster.params.centroids)
        for step, job in (("annotate", self.annotate), ("deduplicate", self.deduplicate)):
            if job is None or job.params.clusters_directory is None:
                continue
            centroids = job.params.centroids or centroids_beside(job.params.clusters_directory)
            if self.cluster is None:
                load_centroids(centroids)
                continue
            made = self.cluster.params
            _check_reads(step, "clusters_directory", job.params.clusters_directory, "cluster", made.clusters_dir)
            _check_reads(step, "centroids", centroids, "cluster", made.centroids_file)

    def _check_deduplicate(self) -> bool:
        """Returns whether the filter has to read what the deduplicate step writes."""
        scored = self.annotate.params.annotated_output_dir
        if self.deduplicate is None:
            return False
        params = self.deduplicate.params
        _check_reads("deduplicate", "annotated_directory", params.annotated_directory, "annotate", scored)
        is_filtered = self.filter is not None and params.write_documents
        if is_filtered and params.annotated_directory is None:
            raise ConfigError(
                "deduplicate step: the filter step needs scored documents; set params.annotated_directory to "
                f"{shown_path(scored)}"
            )
        return is_filtered

    def _check_filter(self, is_deduplicated: bool) -> None:
        if self.filter is None:
            return
        params = self.filter.params
        if not is_deduplicated or self.deduplicate is None:
            written = self.annotate.params.annotated_output_dir
            _check_reads("filter", "annotated_directory", params.annotated_directory, "annotate", written)
            return
        written = self.deduplicate.params.deduplicated_dir
        _check_reads("filter", "annotated_directory", params.annotated_directory, "deduplicate", written)
        if params.embeddings_directory is not None:
            raise ConfigError(
                "filter step: deduplicated documents are not the rows of the embeddings; remove "
                "params.embeddings_directory, and list the keys to keep as output_keys of the annotate step"
            )


def _check_reads(step: str, field: str, read: Path | None, writing_step: str, written: Path) -> None:
    """Checks that what a job reads, if anything, is what another one writes, or a folder within it."""
    if read is not None and not read.resolve().is_relative_to(written.resolve()):
        raise ConfigError(
            f"{step} step: params.{field} is {shown_path(read)}, and the {writing_step} step writes "
            f"{shown_path(written)}; give that"
        )
