"""What a job of any kind is to do."""

from collections.abc import Callable, Mapping
from typing import Any

from mlfilter_core.annotating.work import annotation_workload
from mlfilter_core.config.annotation import AnnotationJob
from mlfilter_core.config.embedding import EmbeddingJob
from mlfilter_core.config.execution import Job
from mlfilter_core.config.filtering import FilterJob
from mlfilter_core.config.training import TrainingJob
from mlfilter_core.embedding.work import embedding_workload
from mlfilter_core.filtering.work import filter_workload
from mlfilter_core.training.work import training_workload
from mlfilter_core.work.workload import Workload

WORKLOADS: Mapping[type[Job], Callable[[Any], Workload[Any]]] = {
    EmbeddingJob: embedding_workload,
    AnnotationJob: annotation_workload,
    TrainingJob: training_workload,
    FilterJob: filter_workload,
}


def workload_of(job: Job) -> Workload[Any]:
    """Returns what a job is to do.

    Raises:
        MlfilterError: As the function for its kind.
    """
    return WORKLOADS[type(job)](job)
