"""The pipelines as plain functions of a job file, with or without a Prefect server at hand."""

import multiprocessing
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.prefect_api.server import (
    ApiLostError,
    api_is_configured,
    is_of_api,
    keep_prefect_home_in,
    prefect_api,
    report_no_usage,
)
from mlfilter_core.config.annotation import AnnotationJob
from mlfilter_core.config.embedding import EmbeddingJob
from mlfilter_core.config.execution import Job
from mlfilter_core.config.filtering import FilterJob
from mlfilter_core.config.job_files import load_job
from mlfilter_core.config.training import TrainingJob
from mlfilter_core.errors import ConfigError
from mlfilter_core.files.publishing import check_writable

if TYPE_CHECKING:
    from flows.running.report import RunReport


def run_embedding_pipeline(config_file_path: Path, overrides: dict[str, Any] | None = None) -> "RunReport":
    """Embeds a corpus: one HDF5 file for each JSONL file.

    Args:
        config_file_path: YAML job file.
        overrides: Values that replace those of the file, by dotted name: `{"params.batch_size": 128}`.

    Returns:
        What became of every file.

    Raises:
        JobError: The job cannot run as it is configured.
        FilesFailedError: Some files failed; the others are finished.
    """
    job = load_job(config_file_path, EmbeddingJob, overrides)

    def run() -> "list[RunReport]":
        from flows.embed import embed

        return [embed(config_file_path, overrides or {})]

    return _run(run, job)[0]


def run_annotation_pipeline(config_file_path: Path, overrides: dict[str, Any] | None = None) -> "RunReport":
    """Scores embeddings: one annotated JSONL file for each HDF5 file.

    Arguments, result and errors as in `run_embedding_pipeline`.
    """
    job = load_job(config_file_path, AnnotationJob, overrides)

    def run() -> "list[RunReport]":
        from flows.annotate import annotate

        return [annotate(config_file_path, overrides or {})]

    return _run(run, job)[0]


def run_head_training(config_file_path: Path, overrides: dict[str, Any] | None = None) -> "RunReport":
    """Trains heads on labelled embeddings.

    Arguments, result and errors as in `run_embedding_pipeline`.
    """
    job = load_job(config_file_path, TrainingJob, overrides)

    def run() -> "list[RunReport]":
        from flows.train_head import train_head

        return [train_head(config_file_path, overrides or {})]

    return _run(run, job)[0]


def run_filter(config_file_path: Path, overrides: dict[str, Any] | None = None, dry_run: bool = False) -> "RunReport":
    """Keeps the best documents of annotated files; a dry run ends after the survey of their scores.

    Other arguments, result and errors as in `run_embedding_pipeline`.
    """
    job = load_job(config_file_path, FilterJob, overrides)

    def run() -> "list[RunReport]":
        from flows.filter import filter

        return [filter(config_file_path, overrides or {}, dry_run)]

    return _run(run, job)[0]


def run_pipelines(
    embed_config: Path,
    annotate_config: Path,
    train_config: Path | None = None,
    filter_config: Path | None = None,
    embed_overrides: dict[str, Any] | None = None,
    annotate_overrides: dict[str, Any] | None = None,
    train_overrides: dict[str, Any] | None = None,
    filter_overrides: dict[str, Any] | None = None,
) -> "list[RunReport]":
    """Embeds a corpus, trains heads if asked to, scores it, then filters it if asked to.

    All job files are checked before anything starts.
    """
    jobs: list[Job] = [load_job(embed_config, EmbeddingJob, embed_overrides)]
    if train_config is not None:
        jobs.append(load_job(train_config, TrainingJob, train_overrides))
    jobs.append(load_job(annotate_config, AnnotationJob, annotate_overrides))
    if filter_config is not None:
        jobs.append(load_job(filter_config, FilterJob, filter_overrides))

    def run() -> "list[RunReport]":
        from flows.pipeline import pipeline

        return pipeline(
            embed_config,
            annotate_config,
            train_config,
            filter_config,
            embed_overrides=embed_overrides or {},
            annotate_overrides=annotate_overrides or {},
            train_overrides=train_overrides or {},
            filter_overrides=filter_overrides or {},
        )

    return _run(run, *jobs)


def _run(run: "Callable[[], list[RunReport]]", *jobs: Job) -> "list[RunReport]":
    if getattr(multiprocessing.current_process(), "_inheriting", False):  # a worker imports the script once more
        raise ConfigError('call this below `if __name__ == "__main__":`; workers import the script that starts them')
    job = jobs[0]
    check_writable(job.params.output_dir)
    check_writable(job.logging_dir, f"{job.settings_name}.logging_dir")
    # Its database is for the processes of one machine: SQLite's log does not work across a network.
    folder = job.logging_dir / "prefect" / socket.gethostname()
    keep_prefect_home_in(folder)
    report_no_usage()
    if not api_is_configured():
        from flows.running.finished import finished_before

        reports = [report for job in jobs if (report := finished_before(job)) is not None]
        if len(reports) == len(jobs):
            return reports
    with prefect_api(folder):
        return _outliving_api(run, len(jobs))


def _outliving_api(run: "Callable[[], list[RunReport]]", n_jobs: int) -> "list[RunReport]":
    """Returns the reports of what was done, also where Prefect loses its API before it can tell it.

    Raises:
        FilesFailedError: Some files failed; the others are finished.
        ApiLostError: The API was lost before all was done.
    """
    from flows.running.report import FilesFailedError, keeping_reports

    with keeping_reports() as reports:
        try:
            return run()
        except Exception as error:
            if not is_of_api(error):
                raise
            lost = ApiLostError(error)
    failed = next((report for report in reports if report.failures), None)
    if failed is None and len(reports) < n_jobs:
        raise lost
    print(f"warning: {lost}", file=sys.stderr)
    if failed is not None:
        raise FilesFailedError(failed)
    return reports
