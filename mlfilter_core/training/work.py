"""A training job: one file for each head."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from mlfilter_core.config.training import TrainingJob, TrainingParameters
from mlfilter_core.embedding_store.layout import EMBEDDING_SUFFIXES
from mlfilter_core.files.publishing import unless_overwritten
from mlfilter_core.files.task_files import TaskFile, find_files
from mlfilter_core.training.train_request import SUFFIX, TrainReport, TrainRequest, finished_head
from mlfilter_core.work.workload import Work, Workload

GB = 10**9


@dataclass(frozen=True)
class TrainWork(Work[TrainReport]):
    """The work of a training job; the file of a task is the head to write.

    Attributes:
        params: Parameters of the job.
        requests: Request of each head, by name.
    """

    IMPORTS: ClassVar[Sequence[str]] = ("mlfilter_core.training.train_head",)

    params: TrainingParameters
    requests: Mapping[str, TrainRequest]

    def outputs(self, file: TaskFile) -> Sequence[Path]:
        return (file.path,)

    def finished(self, file: TaskFile, read_content: bool) -> TrainReport | None:
        return unless_overwritten(lambda: finished_head(self.requests[file.stem], file.path), self.params.overwrite)

    def make(self, file: TaskFile) -> TrainReport:
        from mlfilter_core.compute.devices import pick_device
        from mlfilter_core.training.train_head import train_head

        return train_head(self.requests[file.stem], file.path, pick_device(self.params.device))


def training_workload(job: TrainingJob) -> Workload[TrainReport]:
    """Returns the workload of a training job.

    Raises:
        ConfigError: The folder of embeddings is missing or contains none.
    """
    params = job.params
    files = find_files(params.embeddings_directory, params.glob_pattern, EMBEDDING_SUFFIXES, written_by="embed")
    requests = {
        name: TrainRequest(
            name,
            recipe,
            tuple(file.path for file in files),
            params.hdf5_dataset_name,
            test_fraction=params.test_fraction,
            validation_fraction=params.validation_fraction,
            split_seed=params.split_seed,
            max_bytes=int(params.memory_gb * GB),
        )
        for name, recipe in params.heads.items()
    }
    heads = sorted(TaskFile(f"{name}{SUFFIX}", name, params.heads_dir.absolute()) for name in requests)
    return Workload("train_head", heads, TrainWork(params, requests), params.heads_dir)
