"""`ml_filter.annotation.annotation_pipeline`, where the predecessor kept its function."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.running.start import run_job_file

if TYPE_CHECKING:
    from flows.running.report import RunReport


def run_annotation_pipeline(config_file_path: Path, overrides: Mapping[str, Any] | None = None) -> "RunReport":
    """Scores embeddings: one annotated JSONL file for each HDF5 file.

    Arguments, result and errors as in `flows.running.start.run_job_file`.
    """
    return run_job_file("annotate", config_file_path, overrides)
