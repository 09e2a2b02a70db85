"""Which kind of job a file describes, told by a field that no other kind has."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from mlfilter_core.config.annotation import AnnotationJob
from mlfilter_core.config.embedding import EmbeddingJob
from mlfilter_core.config.execution import Job
from mlfilter_core.config.filtering import FilterJob
from mlfilter_core.config.job_files import load_job
from mlfilter_core.config.training import TrainingJob

# Each kind needs its field.
KINDS: Mapping[str, type[Job]] = {
    "input_dir": EmbeddingJob,
    "regression_head_checkpoints": AnnotationJob,
    "heads": TrainingJob,
    "keep": FilterJob,
}


def load_any_job(config: Path, overrides: Mapping[str, Any]) -> Job:
    """Returns the job of a file, of whatever kind; one that cannot be told is taken for an embedding job.

    Raises:
        ConfigError: As `load_job`.
    """
    try:
        params = yaml.safe_load(config.read_text(encoding="utf-8"))["params"]
        kind = next((kind for field, kind in KINDS.items() if field in params), EmbeddingJob)
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        kind = EmbeddingJob  # it is no job file at all; what is wrong is said when it is loaded
    return load_job(config, kind, overrides)
