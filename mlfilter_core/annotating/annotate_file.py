"""One HDF5 file of embeddings to one annotated JSONL file, every head in one pass."""

import json
import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import orjson
from numpy.typing import NDArray

from mlfilter_core.annotating.annotated_format import (
    SUFFIXES,
    Compression,
    compressed,
    provenance_path,
    write_records,
)
from mlfilter_core.config.annotation import Ensemble
from mlfilter_core.embedding_store.fingerprint import fingerprint
from mlfilter_core.embedding_store.layout import DOCUMENT_ID
from mlfilter_core.embedding_store.output_values import OutputValues
from mlfilter_core.embedding_store.reader import EmbeddingFile
from mlfilter_core.errors import AnnotationError, OutputConflictError
from mlfilter_core.files.identity import is_same_file
from mlfilter_core.files.new_file import HashedFile
from mlfilter_core.files.publishing import publish, publish_json
from mlfilter_core.files.task_files import TaskFile
from mlfilter_core.heads.scores import ScoreColumns, Values
from mlfilter_core.tallies.score_statistics import score_statistics, write_score_statistics
from mlfilter_core.work.progress import Progress, ProgressTeller
from mlfilter_core.work.same_request import REPLACE, check_same_request

if TYPE_CHECKING:
    from mlfilter_core.heads.head import Head


_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AnnotateRequest:
    """The settings for every file of an annotation run.

    Attributes:
        output_dir: Folder of the annotated files.
        head_sha256: Digest of each head's checkpoint, by the head's name, in output order.
        output_keys: Names in the HDF5 file, otherwise keys of the source document; `*` is all of it.
        score_prefix: Prefix of a head's name in the output.
        ensembles: Scores that combine other scores, by name.
        integer_scales: Lowest and highest whole number of a score, by its name.
        group: Name of the HDF5 group.
        batch_size: Embeddings per forward pass of the heads.
        model_dtype: torch name of the heads' dtype.
        compression: Compression of the annotated files.
        source_dir: Folder of the sources; None where they have not moved since they were embedded.
        allow_mismatched_head: Whether to score with heads that were trained on another encoder.
    """

    output_dir: Path
    head_sha256: dict[str, str]
    output_keys: tuple[str, ...] = (DOCUMENT_ID,)
    score_prefix: str = "score_"
    group: str = "train"
    batch_size: int = 2048
    model_dtype: str = "float32"
    compression: Compression = None
    source_dir: Path | None = None
    allow_mismatched_head: bool = False
    ensembles: Mapping[str, Ensemble] = field(default_factory=dict)
    integer_scales: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    def output(self, embeddings: TaskFile) -> Path:
        return embeddings.output(self.output_dir, SUFFIXES[self.compression])

    def provenance_file(self, embeddings: TaskFile) -> Path:
        return provenance_path(self.output_dir, f"{embeddings.stem}{SUFFIXES[self.compression]}")

    def provenance(self) -> dict[str, Any]:
        """Returns the settings that change the content of the output; unset ensembles and scales are left out."""
        ensembles = {name: ensemble.model_dump() for name, ensemble in self.ensembles.items()}
        return {
            "heads": self.head_sha256,
            "output_keys": list(self.output_keys),
            "score_prefix": self.score_prefix,
            "group": self.group,
            "model_dtype": self.model_dtype,
            **({"ensembles": ensembles} if ensembles else {}),
            **({"integer_scales": dict(self.integer_scales)} if self.integer_scales else {}),
        }


@dataclass(frozen=True)
class AnnotateReport:
    """The result of annotating one file of embeddings.

    Attributes:
        embeddings: Path relative to the folder of embeddings.
        output: The annotated file.
        status: `annotated`, or `skipped` where the output was finished before.
        documents: Number of rows of the HDF5 file, which are the lines of the output.
        missing_values: Number of documents that lack an output key, by key; the value is written as null.
        mismatched_heads: Differences between the encoders of head and embeddings, by head.
        seconds: Wall time; 0 where skipped.
        worker: Name of the process; empty where skipped.
        started: Start time in seconds since 1970, UTC; 0 where skipped.
    """

    PRINTED: ClassVar[Sequence[str]] = ("documents", "seconds", "documents/s")
    SUMMED: ClassVar[Sequence[str]] = ("documents",)

    embeddings: str
    output: str
    status: Literal["annotated", "skipped"]
    documents: int
    missing_values: dict[str, int]
    mismatched_heads: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    worker: str = ""
    started: float = 0.0

    @staticmethod
    def remarks_on(reports: "Sequence[AnnotateReport]") -> list[str]:
        """Returns the heads that were trained on another encoder."""
        mismatched = {item for report in reports for item in report.mismatched_heads.items()}
        return [
            f"head {name} was trained on the embeddings of another encoder: {differences}"
            for name, differences in sorted(mismatched)
        ]


def annotate_file(embeddings: TaskFile, request: AnnotateRequest, heads: list["Head"]) -> AnnotateReport:
    """Scores one file. The output appears complete or not at all.

    Args:
        embeddings: The HDF5 file.
        request: The request of this run.
        heads: Heads of `request.head_sha256`, in the same order, on the device to use.

    Raises:
        HeadError: A head does not fit the embeddings.
        AnnotationError: A score is NaN or infinite, or no document has an output key.
        SourceError: The source is needed, but missing or changed since it was embedded.
        EmbeddingFileError: The file is not a file of embeddings.
        OSError: Reading or writing failed.
    """
    from mlfilter_core.heads.head import check_heads_fit, find_mismatched_heads, score

    started = time.monotonic()
    output = request.output(embeddings)
    columns = score_columns(heads, request)
    statistics = score_statistics(columns.scores(columns.table(np.empty((0, columns.n_outputs), np.float32))))
    teller = ProgressTeller()
    with (
        EmbeddingFile(embeddings.path, request.group) as file,
        OutputValues(file, request.output_keys, columns.names, request.source_dir) as values,
        publish(output) as temporary,
    ):
        check_heads_fit(heads, file.dim, str(embeddings.path))
        mismatched = find_mismatched_heads(
            heads, fingerprint(file.provenance), str(embeddings.path), request.allow_mismatched_head
        )
        with HashedFile(temporary) as on_disk, compressed(on_disk, request.compression) as sink:
            for rows in file.slices(request.batch_size):
                outputs = score(heads, file.embeddings(rows))
                check_finite(outputs, heads, file, rows)
                table = columns.table(outputs)
                statistics += score_statistics(columns.scores(table))
                _write(sink, scored(values.records(rows), table), embeddings.path, rows)
                if teller.is_due():
                    teller.tell(Progress(embeddings.relative, rows.stop, share=rows.stop / file.n_rows))
        values.check_complete()
        n_rows = file.n_rows
        made = {
            "request": request.provenance(),
            "embeddings": file.identity(),
            "output": on_disk.identity(),
            "documents": n_rows,
            "columns": columns.names,
            "missing_values": values.missing_values,
            "mismatched_heads": mismatched,
            # Facts of the embeddings, which may be removed later.
            "source": dict(file.provenance.source) if file.provenance else None,
            "encoder": dict(file.provenance.encoder) if file.provenance else None,
            "counts": dict(file.provenance.counts) if file.provenance else None,
            "statistics": {
                **(file.provenance.statistics if file.provenance else {}),
                "scores": write_score_statistics(statistics),
            },
        }
        # Published first: an annotated file without matching provenance is of unknown origin, and never replaced.
        publish_json(request.provenance_file(embeddings), made)
    seconds = time.monotonic() - started
    _log.info("%s: %d documents in %.1f s", embeddings.relative, n_rows, seconds)
    return AnnotateReport(
        embeddings.relative, str(output), "annotated", n_rows, values.missing_values, mismatched, seconds
    )


def score_columns(heads: Sequence["Head"], request: AnnotateRequest) -> ScoreColumns:
    """Returns the columns that are written beside the output keys.

    Raises:
        HeadError: Two columns would have the same name, or the request names a score that does not exist.
    """
    return ScoreColumns(heads, request.score_prefix, request.ensembles, request.integer_scales)


def finished_annotation(
    embeddings: TaskFile, request: AnnotateRequest, read_content: bool = True
) -> AnnotateReport | None:
    """Returns the report of a finished output, or None where the file is not finished.

    Args:
        embeddings: The HDF5 file.
        request: The request of this run.
        read_content: Whether to read a file whose modification time differs; otherwise it counts as not finished.

    Raises:
        OutputConflictError: The output was made from other embeddings, by another request or another tool.
    """
    made = read_annotation(embeddings, request, read_content)
    if made is None:
        return None
    output = request.output(embeddings)
    are_same_embeddings = _are_same_embeddings(embeddings.path, request.group, made["embeddings"], read_content)
    if are_same_embeddings is False:
        raise OutputConflictError(f"{output} was made from another version of {embeddings.path}; {REPLACE}")
    if are_same_embeddings is None:
        return None
    return AnnotateReport(
        *(embeddings.relative, str(output), "skipped", made["documents"], made["missing_values"]),
        made.get("mismatched_heads", {}),
    )


def read_annotation(embeddings: TaskFile, request: AnnotateRequest, read_content: bool) -> dict[str, Any] | None:
    """Returns the provenance of an output, or None where the output is missing or only its content can tell.

    Args:
        embeddings: The HDF5 file that it was made from, which need not exist any more.
        request: The request of this run.
        read_content: Whether to read an output whose modification time differs.

    Raises:
        OutputConflictError: The output was made by another request or another tool, or was changed.
    """
    output = request.output(embeddings)
    if not output.exists():
        return None
    try:
        made: dict[str, Any] = json.loads(request.provenance_file(embeddings).read_text())
    except (FileNotFoundError, ValueError):
        raise OutputConflictError(f"{output} does not say which heads and embeddings made it; {REPLACE}") from None
    check_same_request(output, made["request"], request.provenance())
    is_same_output = is_same_file(output, made["output"], read_content)
    if is_same_output is False:
        raise OutputConflictError(f"{output} was changed since it was annotated; {REPLACE}")
    return made if is_same_output else None


def check_finite(outputs: NDArray[np.float32], heads: Sequence["Head"], file: EmbeddingFile, rows: slice) -> None:
    """Checks the outputs of heads for some rows of a file.

    Raises:
        AnnotationError: A score is NaN or infinite; names its document and its head.
    """
    if np.isfinite(outputs).all():
        return
    row, column = np.argwhere(~np.isfinite(outputs))[0]
    names = [head.name for head in heads for _ in range(head.n_outputs)]
    place = file.find(DOCUMENT_ID)
    name = file.column(place, slice(rows.start + row, rows.start + row + 1))[0] if place else "without an id"
    raise AnnotationError(
        f"{file.path}: row {rows.start + row} (document {name}): head {names[column]} gives {outputs[row, column]}; "
        "check the head's weights, the embedding, and model_dtype (float16 overflows)"
    )


def scored(records: Iterable[dict[str, Any]], table: Mapping[str, Values]) -> Iterator[dict[str, Any]]:
    """Yields the records with the values of a table added; row i belongs to record i."""
    for record, row in zip(records, zip(*table.values(), strict=True), strict=True):
        record.update(zip(table, row, strict=True))
        yield record


def _write(sink: IO[bytes], records: Iterable[dict[str, Any]], path: Path, rows: slice) -> None:
    try:
        write_records(sink, records)
    except orjson.JSONEncodeError as error:  # orjson writes fewer levels of nesting than it reads
        raise AnnotationError(
            f"{path}: rows {rows.start} to {rows.stop - 1}: a value cannot be written as JSON ({error}); leave its key "
            "out of params.output_keys"
        ) from error


def _are_same_embeddings(path: Path, group: str, recorded: dict[str, Any], read_content: bool) -> bool | None:
    with EmbeddingFile(path, group) as file:
        if file.provenance is None and "mtime_ns" in recorded:
            return is_same_file(path, recorded, read_content)
        return file.identity() == recorded
