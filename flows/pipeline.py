"""The flows one after another: embed a corpus, cluster it, train heads, score it, remove near-duplicates, filter it."""

if __name__ == "__main__":
    # Before the imports below, for the reasons in flows/embed.py.
    from flows.running.script import run_script

    run_script("pipeline")
    raise SystemExit

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from prefect import flow

from flows.annotate import annotate
from flows.cluster import cluster
from flows.deduplicate import deduplicate
from flows.embed import embed
from flows.filter import filter
from flows.prefect_api.failures import expected_errors_as_states
from flows.prefect_api.left_running import never_left_running
from flows.running.report import RunReport
from flows.running.run_files import check_job
from flows.train_head import train_head
from mlfilter_core.annotating.work import load_heads
from mlfilter_core.config.annotation import AnnotationJob
from mlfilter_core.config.clustering import ClusterJob
from mlfilter_core.config.deduplication import DeduplicationJob
from mlfilter_core.config.embedding import EmbeddingJob
from mlfilter_core.config.execution import Job
from mlfilter_core.config.filtering import FilterJob
from mlfilter_core.config.job_files import load_job
from mlfilter_core.config.pipeline_jobs import PipelineJobs
from mlfilter_core.config.training import TrainingJob


@flow(name="pipeline", validate_parameters=False)
@never_left_running()
@expected_errors_as_states
def pipeline(
    embed_config: Path | EmbeddingJob,
    annotate_config: Path | AnnotationJob,
    train_config: Path | TrainingJob | None = None,
    filter_config: Path | FilterJob | None = None,
    cluster_config: Path | ClusterJob | None = None,
    deduplicate_config: Path | DeduplicationJob | None = None,
    embed_overrides: Mapping[str, Any] = {},
    annotate_overrides: Mapping[str, Any] = {},
    train_overrides: Mapping[str, Any] = {},
    filter_overrides: Mapping[str, Any] = {},
    cluster_overrides: Mapping[str, Any] = {},
    deduplicate_overrides: Mapping[str, Any] = {},
) -> list[RunReport]:
    """Runs one flow after another; ends after a flow in which a file failed.

    Args:
        embed_config: Embedding job: path of a YAML job file on the machine that runs the flow, or the whole job.
        annotate_config: Annotation job: path of a YAML job file there, or the whole job.
        train_config: Training job, if heads are to be trained: path of a YAML job file there, or the whole job.
        filter_config: Filter job, if documents are to be filtered: path of a YAML job file there, or the whole job.
        cluster_config: Cluster job, if documents are to be grouped by topic, after embedding: path of a YAML job file
            there, or the whole job.
        deduplicate_config: Deduplication job, if near-duplicates are to be removed, after scoring: path of a YAML job
            file there, or the whole job.
        embed_overrides: Values that replace those of `embed_config`, by dotted name: `{"params.batch_size": 128}`.
        annotate_overrides: Values that replace those of `annotate_config`, by dotted name.
        train_overrides: Values that replace those of `train_config`, by dotted name.
        filter_overrides: Values that replace those of `filter_config`, by dotted name.
        cluster_overrides: Values that replace those of `cluster_config`, by dotted name.
        deduplicate_overrides: Values that replace those of `deduplicate_config`, by dotted name.

    Raises:
        JobError: A job cannot run as it is configured, or does not read what the steps before it write.
        FilesFailedError: Some files failed; the others are finished.
    """
    jobs = PipelineJobs(
        load_job(embed_config, EmbeddingJob, embed_overrides),
        None if cluster_config is None else load_job(cluster_config, ClusterJob, cluster_overrides),
        None if train_config is None else load_job(train_config, TrainingJob, train_overrides),
        load_job(annotate_config, AnnotationJob, annotate_overrides),
        None if deduplicate_config is None else load_job(deduplicate_config, DeduplicationJob, deduplicate_overrides),
        None if filter_config is None else load_job(filter_config, FilterJob, filter_overrides),
    )
    steps: list[tuple[Callable[..., RunReport], Job | None]] = [
        (embed, jobs.embed),
        (cluster, jobs.cluster),
        (train_head, jobs.train),
        (annotate, jobs.annotate),
        (deduplicate, jobs.deduplicate),
        (filter, jobs.filter),
    ]
    # Checked before days of embedding, not after. Heads that are not trained yet cannot be loaded.
    jobs.check()
    for _, job in steps[1:]:
        if job is not None:
            check_job(job)
    if jobs.train is None:
        load_heads(jobs.annotate.params)
    return [run(job) for run, job in steps if job is not None]
