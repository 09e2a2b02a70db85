"""How fast this machine scores rows of some files, measured by scoring them."""

import math
import os
import resource
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mlfilter_core.annotating.annotate_file import check_finite, score_columns, scored
from mlfilter_core.annotating.annotate_request import AnnotateRequest
from mlfilter_core.annotating.annotated_format import SUFFIXES, compressed, write_records
from mlfilter_core.embedding_store.output_values import OutputValues
from mlfilter_core.embedding_store.reader import EmbeddingFile
from mlfilter_core.errors import AnnotationError
from mlfilter_core.files.new_file import open_new
from mlfilter_core.files.task_files import TaskFile
from mlfilter_core.plan.estimates import Estimate
from mlfilter_core.plan.findings import Findings

if TYPE_CHECKING:
    from mlfilter_core.heads.head import Head

MAX_ROWS, MAX_S = 20_000, 2.0  # of one file; either is enough to tell its speed


@dataclass(frozen=True)
class AnnotationTrial:
    """What scoring some rows took.

    Attributes:
        rows: That were scored.
        seconds: From the HDF5 files to JSONL files.
        bytes_per_row: Of what was written, with the interval that the files' differences give.
        columns: Names of what is written beside the output keys.
        suffix: Of annotated files.
        device: Where the heads computed.
        peak_bytes: That this process took of memory at most.
    """

    rows: int
    seconds: float
    bytes_per_row: Estimate
    columns: Sequence[str]
    suffix: str
    device: str
    peak_bytes: int

    @property
    def rows_per_s(self) -> float:
        return self.rows / self.seconds


def try_annotation(
    files: Sequence[TaskFile],
    request: AnnotateRequest,
    heads: Sequence["Head"],
    device: str,
    findings: Findings,
) -> AnnotationTrial | None:
    """Scores the first rows of some files, and writes them to a temporary folder.

    Args:
        files: Of embeddings.
        request: What is asked of each.
        heads: All of the job's, as wide as the embeddings.
        device: Where they compute.
        findings: Takes what is wrong with a file, its source, or the output keys.

    Returns:
        None where no row could be scored.
    """
    import torch

    from mlfilter_core.compute.devices import pick_device

    chosen = pick_device(device)
    placed = [head.to(chosen, getattr(torch, request.model_dtype)) for head in heads]
    sizes: list[tuple[int, int]] = []  # rows and bytes of each file
    seconds = 0.0
    with tempfile.TemporaryDirectory(prefix="mlfilter-plan-") as folder:
        for number, file in enumerate(files):
            written = Path(folder) / str(number)
            with findings.noting():
                started = time.monotonic()
                n_rows = _annotate_first(file, written, request, placed)
                seconds += time.monotonic() - started
                sizes.append((n_rows, written.stat().st_size))
    n_rows = sum(rows for rows, _ in sizes)
    if not n_rows:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << (10 if os.uname().sysname == "Linux" else 0)
    columns = score_columns(placed, request).names
    return AnnotationTrial(
        n_rows, max(seconds, 1e-6), _per_row(sizes), columns, SUFFIXES[request.compression], str(chosen), peak
    )


def _annotate_first(file: TaskFile, written: Path, request: AnnotateRequest, heads: list["Head"]) -> int:
    """Writes the first rows of a file as they would be annotated; returns how many they are."""
    from mlfilter_core.heads.head import score

    columns = score_columns(heads, request)
    deadline = time.monotonic() + MAX_S
    with (
        EmbeddingFile(file.path, request.group) as embeddings,
        OutputValues(embeddings, request.output_keys, columns.names, request.source_dir) as values,
        open_new(written) as on_disk,
        compressed(on_disk, request.compression) as sink,
    ):
        n_done = 0
        for rows in embeddings.slices(request.batch_size):
            outputs = score(heads, embeddings.embeddings(rows))
            check_finite(outputs, heads, embeddings, rows)
            write_records(sink, scored(values.records(rows), columns.table(outputs)))
            n_done = rows.stop
            if n_done >= MAX_ROWS or time.monotonic() > deadline:
                break
        absent = [key for key, n_missing in values.missing_values.items() if n_missing == n_done]
        if absent:
            raise AnnotationError(
                f"params.output_keys: {' and '.join(map(repr, absent))} is neither in {file.path} nor in any of the "
                f"first {n_done} documents of its source; there are: {', '.join(values.known_keys())}"
            )
    return n_done


def _per_row(sizes: Sequence[tuple[int, int]]) -> Estimate:
    """Returns the bytes of a row: a ratio over the files (Cochran, Sampling Techniques, chapter 6)."""
    n_rows, n_bytes = sum(rows for rows, _ in sizes), sum(size for _, size in sizes)
    ratio = n_bytes / n_rows
    if len(sizes) < 2:
        return Estimate(ratio, ratio, ratio)
    from scipy.stats import t

    spread = sum((size - ratio * rows) ** 2 for rows, size in sizes) / (len(sizes) - 1)
    half = float(t.ppf(0.975, len(sizes) - 1)) * math.sqrt(spread * len(sizes)) / n_rows
    return Estimate(ratio, max(0.0, ratio - half), ratio + half)
