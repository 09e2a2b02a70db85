"""How fast this machine scores documents, measured by scoring the first rows of some files."""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from mlfilter_core.annotating.annotate_file import score_columns
from mlfilter_core.annotating.annotate_request import AnnotateRequest
from mlfilter_core.annotating.annotated_format import compressed
from mlfilter_core.embedding_store.output_values import OutputValues
from mlfilter_core.embedding_store.reader import EmbeddingFile
from mlfilter_core.embedding_store.source_documents import clusters_advice
from mlfilter_core.errors import AnnotationError
from mlfilter_core.files.new_file import open_new
from mlfilter_core.files.task_files import TaskFile
from mlfilter_core.plan.estimates import Estimate, estimate_ratio
from mlfilter_core.plan.findings import Findings
from mlfilter_core.plan.worker_memory import peak_memory_bytes

if TYPE_CHECKING:
    from mlfilter_core.heads.head import Head

MAX_ROWS, MAX_S = 20_000, 2.0  # per file; either is enough to measure the speed


@dataclass(frozen=True)
class AnnotationTrial:
    """The cost of scoring some rows.

    Attributes:
        rows: Number of rows that were scored.
        seconds: Seconds from the HDF5 files to the annotated files.
        bytes_per_row: Bytes written for a row.
        columns: Names of the scores that are written beside the output keys.
        device: Device of the heads.
        threads: Threads of torch.
        peak_bytes: Peak memory of this process.
    """

    rows: int
    seconds: float
    bytes_per_row: Estimate
    columns: Sequence[str]
    device: str
    threads: int
    peak_bytes: int

    @property
    def rows_per_s(self) -> float:
        return self.rows / self.seconds


def try_annotation(
    files: Sequence[TaskFile], request: AnnotateRequest, heads: Sequence["Head"], device: str, findings: Findings
) -> AnnotationTrial | None:
    """Scores the first rows of some files, and writes them to a temporary folder.

    Args:
        files: Files of embeddings.
        request: Request of the job.
        heads: All heads of the job, as wide as the embeddings.
        device: Device of the heads.
        findings: Receives what is wrong with a file, its source, or the output keys.

    Returns:
        None where no row could be scored.
    """
    import torch

    from mlfilter_core.compute.devices import pick_device

    chosen = pick_device(device)
    placed = [head.to(chosen, getattr(torch, request.model_dtype)) for head in heads]
    rows: list[int] = []
    sizes: list[int] = []
    seconds = 0.0
    with tempfile.TemporaryDirectory(prefix="mlfilter-plan-") as folder:
        for number, file in enumerate(files):
            written = Path(folder) / str(number)
            with findings.noting():
                started = time.monotonic()
                n_rows = _annotate_first(file, written, request, placed)
                seconds += time.monotonic() - started
                rows.append(n_rows)
                sizes.append(written.stat().st_size)
    if not sum(rows):
        return None
    return AnnotationTrial(
        rows=sum(rows),
        seconds=max(seconds, 1e-6),
        bytes_per_row=estimate_ratio(sizes, rows),
        columns=score_columns(placed, request).names,
        device=str(chosen),
        threads=torch.get_num_threads(),
        peak_bytes=peak_memory_bytes(),
    )


def _annotate_first(file: TaskFile, written: Path, request: AnnotateRequest, heads: list["Head"]) -> int:
    """Writes the first rows of a file as they would be annotated; returns their number."""
    from mlfilter_core.annotating.scored_rows import write_scored_rows

    columns = score_columns(heads, request)
    deadline = time.monotonic() + MAX_S
    n_done, n_batches = 0, 1
    with (
        EmbeddingFile(file.path, request.group) as embeddings,
        OutputValues(
            *(embeddings, request.output_keys, columns.names, request.source_dir),
            request.cluster_values(file, embeddings),
        ) as values,
        open_new(written) as on_disk,
        compressed(on_disk, request.compression) as sink,
    ):
        left = embeddings.slices(request.batch_size)
        # Each time twice as many: batches are scored while others are read and written.
        while n_done < MAX_ROWS and time.monotonic() < deadline and (slices := list(islice(left, n_batches))):
            write_scored_rows(sink, embeddings, slices, heads, columns, values)
            n_done, n_batches = slices[-1].stop, 2 * n_batches
        absent = [key for key, n_missing in values.missing_values.items() if n_missing == n_done]
        if absent:
            raise AnnotationError(
                f"params.output_keys: {' and '.join(map(repr, absent))} is neither in {file.path} nor in any of the "
                f"first {n_done} documents of its source; there are: {', '.join(values.known_keys())}"
                f"{clusters_advice(absent)}"
            )
    return n_done
