"""Both pipelines in a row: embed a corpus, then score it."""

if __name__ == "__main__":
    # Before the imports below, for the reasons in flows/embed.py.
    from flows.cli import pipeline_script

    pipeline_script()
    raise SystemExit

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefect import flow

from flows.annotate import annotate, check_annotation_job
from flows.embed import embed
from flows.failures import expected_errors_as_states
from flows.left_running import never_left_running
from flows.report import RunReport
from mlfilter_core.config.annotation import AnnotationJob
from mlfilter_core.config.embedding import EmbeddingJob


@flow(name="pipeline", validate_parameters=False)
@never_left_running()
@expected_errors_as_states
def pipeline(
    embed_config: Path | EmbeddingJob,
    annotate_config: Path | AnnotationJob,
    embed_overrides: Mapping[str, Any] = {},
    annotate_overrides: Mapping[str, Any] = {},
) -> list[RunReport]:
    """Runs the embedding pipeline, then the annotation pipeline. Scores nothing while a file is not embedded.

    Args:
        embed_config: What to embed: path of a YAML job file on the machine that runs the flow, or the whole job.
        annotate_config: What to score: path of a YAML job file there, or the whole job.
        embed_overrides: Values that replace those of `embed_config`, by dotted name: `{"params.batch_size": 128}`.
        annotate_overrides: Values that replace those of `annotate_config`, by dotted name.
    """
    check_annotation_job(annotate_config, annotate_overrides)  # now, and not after days of embedding
    return [embed(embed_config, embed_overrides), annotate(annotate_config, annotate_overrides)]
