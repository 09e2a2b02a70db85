"""`ml_filter.annotation.embedding_pipeline`, where the predecessor kept its function."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.running.start import run_job_file

if TYPE_CHECKING:
    from flows.running.report import RunReport


def run_embedding_pipeline(config_file_path: Path, overrides: Mapping[str, Any] | None = None) -> "RunReport":
    """Embeds a corpus: one HDF5 file for each source file.

    Arguments, result and errors as in `flows.running.start.run_job_file`.
    """
    return run_job_file("embed", config_file_path, overrides)
