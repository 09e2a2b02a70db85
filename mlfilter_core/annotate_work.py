"""An annotation job, applied to one file after another by a worker."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mlfilter_core.annotate_file import (
    AnnotateReport,
    AnnotateRequest,
    annotate_file,
    encoder_weights,
    finished_annotation,
)
from mlfilter_core.claims import claim
from mlfilter_core.config import AnnotationPipelineParameters, Scoring
from mlfilter_core.corpus import CorpusFile
from mlfilter_core.embedding_store import EmbeddingFile
from mlfilter_core.errors import EmbeddingFileError
from mlfilter_core.publishing import unless_overwritten

if TYPE_CHECKING:
    from mlfilter_core.heads import Head


@dataclass(frozen=True)
class AnnotateWork:
    """What an annotation job does with each of its files.

    Attributes:
        params: The job's parameters.
        request: What they ask of every file.
    """

    params: AnnotationPipelineParameters
    request: AnnotateRequest

    def finished(self, file: CorpusFile, read_content: bool) -> AnnotateReport | None:
        """Returns the report of a finished file, None for one to do.

        Raises:
            FileError: The file cannot be done, or an output of another request is in the way.
        """
        return unless_overwritten(lambda: finished_annotation(file, self.request, read_content), self.params.overwrite)

    def run(self, file: CorpusFile) -> AnnotateReport:
        """Scores one file, unless that was done before, by a task that was lost after it had finished, say.

        Another process that is at it is waited for.
        """
        with claim(self.request.output(file)):
            return self.finished(file, read_content=True) or annotate_file(
                file, self.request, heads_of_process(self.params, self.request)
            )


def annotate_work(params: AnnotationPipelineParameters, files: Iterable[CorpusFile]) -> AnnotateWork:
    """Loads the heads, and checks that they fit every readable file; the others fail by themselves.

    Raises:
        HeadError: A checkpoint is missing, corrupted, holds code, or does not fit the embeddings.
    """
    heads = load_heads(params)
    _check_heads(heads, files, params.hdf5_dataset_name)
    return AnnotateWork(
        params,
        annotate_request(params, heads, params.annotated_output_dir, params.hdf5_dataset_name, params.source_dir),
    )


def load_heads(params: Scoring) -> list["Head"]:
    """Loads the heads of a job onto its device.

    Raises:
        HeadError: A checkpoint is missing, corrupted, or holds code.
    """
    import torch

    from mlfilter_core.devices import pick_device
    from mlfilter_core.heads import load_head

    device, dtype = pick_device(params.device), getattr(torch, params.model_dtype)
    checkpoints = params.regression_head_checkpoints
    return [load_head(name, Path(path).expanduser()).to(device, dtype) for name, path in checkpoints.items()]


def annotate_request(
    params: Scoring, heads: list["Head"], output_dir: Path, group: str, source_dir: Path | None = None
) -> AnnotateRequest:
    """Returns what the parameters ask of every file."""
    return AnnotateRequest(
        output_dir=output_dir,
        head_sha256={head.name: head.sha256 for head in heads},
        output_keys=params.output_keys,
        score_prefix=params.score_prefix,
        group=group,
        batch_size=params.batch_size,
        model_dtype=params.model_dtype,
        compression=params.compression,
        source_dir=source_dir,
    )


_heads_of_process: dict[str, list["Head"]] = {}


def heads_of_process(params: Scoring, request: AnnotateRequest) -> list["Head"]:
    """Returns the heads, loaded once for each worker process and version of their checkpoints."""
    key = repr((params.regression_head_checkpoints, request.head_sha256, params.device, params.model_dtype))
    if key not in _heads_of_process:
        _heads_of_process.clear()
        _heads_of_process[key] = load_heads(params)
    return _heads_of_process[key]


def _check_heads(heads: list["Head"], files: Iterable[CorpusFile], group: str) -> None:
    from mlfilter_core.heads import check_heads_fit

    for file in files:
        try:
            with EmbeddingFile(file.path, group) as embeddings:
                check_heads_fit(heads, embeddings.dim, encoder_weights(embeddings), str(file.path))
        except (EmbeddingFileError, OSError):
            continue
