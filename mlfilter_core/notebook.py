"""What a notebook or a script calls: an encoder, files of embeddings, heads, and whole jobs in this process.

`import mlfilter_core` gives all of it. Nothing here starts Prefect or Dask.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mlfilter_core.config.execution import Job
from mlfilter_core.embedding_store.reader import EmbeddingFile
from mlfilter_core.job_kinds import course_of, load_any_job
from mlfilter_core.work.workload import FileReport, run_files

if TYPE_CHECKING:
    from mlfilter_core.encoder.encoder import Encoder
    from mlfilter_core.heads.head import Head


def load_encoder(model: str, *, revision: str | None = None, device: str = "auto", **settings: Any) -> "Encoder":
    """Returns an encoder on a device.

    Args:
        model: Hugging Face model id, local folder, or `package:<package>/<folder>`.
        revision: Branch, tag or commit of a model id.
        device: `auto` (CUDA, then MPS, then CPU), or a torch device such as `cuda:1`.
        settings: Fields of `mlfilter_core.encoder.settings.EncoderSettings`: `max_length`, `pooling`, `prompt`,
            `model_dtype`, ...

    Raises:
        EncoderError: There is no such model, or it is not an encoder of texts.
        ConfigError: The device does not exist.
    """
    from mlfilter_core.encoder.loading import load_encoder
    from mlfilter_core.encoder.model_files import resolve_model
    from mlfilter_core.encoder.settings import EncoderSettings

    return load_encoder(resolve_model(model, revision), EncoderSettings(**settings), device)


def embed_texts(encoder: "Encoder", texts: Sequence[str]) -> NDArray[np.float32]:
    """Returns float32 (n_texts, dim): row i is text i, of unit length where the model normalises.

    Raises:
        MemoryError: A text alone does not fit in the memory of the encoder's device.
        ValueError: The encoder divides long texts into chunks, which have an embedding each.
    """
    if encoder.settings.chunks is not None:
        raise ValueError("this encoder divides texts into chunks; call encoder.tokenize and encoder.encode")
    encoded = encoder.encode(encoder.tokenize(texts))
    if not encoded.fits.all():
        raise MemoryError(f"text {int(np.argmin(encoded.fits))} alone does not fit in the memory of {encoder.device}")
    return encoded.embeddings()


def open_embeddings(path: str | Path, group: str = "train") -> EmbeddingFile:
    """Returns a file of embeddings, open for reading; use it as a context manager.

    Args:
        path: HDF5 file of this project, or of another tool if it has `<group>/embeddings`.
        group: Name of the HDF5 group.

    Raises:
        EmbeddingFileError: The file is not HDF5, cut short, or lacks the group or its embeddings.
    """
    return EmbeddingFile(Path(path), group)


def load_heads(checkpoints: Mapping[str, str | Path], device: str = "cpu") -> "list[Head]":
    """Returns the heads of some checkpoints, in float32.

    Args:
        checkpoints: Path or hub id of each checkpoint, by the head's name.
        device: As in `load_encoder`.

    Raises:
        HeadError: A checkpoint is missing, corrupted, holds code, or cannot be read as a head.
    """
    import torch

    from mlfilter_core.compute.devices import pick_device
    from mlfilter_core.heads.checkpoint_formats import load_head

    chosen = pick_device(device)
    return [load_head(name, path).to(chosen, torch.float32) for name, path in checkpoints.items()]


def score_embeddings(heads: "Sequence[Head]", embeddings: NDArray[np.float32]) -> dict[str, NDArray[Any] | list[Any]]:
    """Returns the columns that an annotation job writes: `score_<head>`, and `label_<head>` of classifiers.

    Args:
        heads: Result of `load_heads`.
        embeddings: float32 (n, dim).

    Returns:
        For each column n values, float32 for scores and strings for labels.

    Raises:
        HeadError: A head is not as wide as the embeddings.
    """
    from mlfilter_core.heads.head import check_heads_fit, score
    from mlfilter_core.heads.scores import ScoreColumns

    check_heads_fit(list(heads), embeddings.shape[1], "the embeddings")
    columns = ScoreColumns(heads, "score_", {}, {}).table(score(heads, embeddings))
    return {name: values if isinstance(values, np.ndarray) else list(values) for name, values in columns.items()}


def load_job(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Job:
    """Returns the job of a YAML file, of any kind.

    Args:
        path: The file.
        overrides: Values that replace those of the file, by dotted name: `{"params.batch_size": 8}`.

    Raises:
        ConfigError: A field is unknown, missing or out of range.
    """
    return load_any_job(Path(path), overrides or {})


def run_in_process(job: Job) -> list[FileReport]:
    """Runs a job here, one file after another; files that are finished are left as they are.

    Args:
        job: Result of `load_job`. Its settings of workers and Slurm are ignored.

    Returns:
        The report of each file, in their order.

    Raises:
        JobError: The job cannot run as it is configured.
        SomeFilesFailedError: Some files failed; the others are finished.
    """
    reports: list[FileReport] = []
    for workload in course_of(job):
        workload.work.prepare(workload.files)
        reports = run_files(workload.files, workload.work)
        workload.work.conclude()
    return reports
