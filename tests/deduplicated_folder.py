"""An output folder as a deduplication job leaves it."""

from pathlib import Path
from typing import Any

from mlfilter_core.config.deduplication import DeduplicationJob
from mlfilter_core.deduplication.work import deduplicate_course
from tests.mlfilter_core.clustering.topics import run


def deduplicate(out: Path, **params: Any) -> None:
    """Deduplicates the embeddings of an output folder with its clusters, into the same one.

    Args:
        out: The folder.
        params: Parameters of the job that override the defaults.
    """
    folders = {"embeddings_directory": out / "embeddings", "clusters_directory": out / "clusters", "output_dir": out}
    job = DeduplicationJob.model_validate({"params": {**folders, "threshold": 0.9, "device": "cpu", **params}})
    for workload in deduplicate_course(job):
        run(workload)
