"""One HDF5 file of embeddings to one annotated JSONL file, every head in one pass."""

import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import orjson
from numpy.typing import NDArray

from mlfilter_core.annotating.annotate_report import AnnotateReport
from mlfilter_core.annotating.annotate_request import AnnotateRequest
from mlfilter_core.annotating.annotated_format import compressed, write_records
from mlfilter_core.corpus.source_text import Parts
from mlfilter_core.embedding_store.fingerprint import fingerprint
from mlfilter_core.embedding_store.layout import DOCUMENT_ID
from mlfilter_core.embedding_store.output_values import OutputValues
from mlfilter_core.embedding_store.reader import EmbeddingFile
from mlfilter_core.errors import AnnotationError
from mlfilter_core.files.new_file import HashedFile
from mlfilter_core.files.part_files import SOURCE_VERSION
from mlfilter_core.files.publishing import publish, publish_json
from mlfilter_core.files.task_files import WHOLE, TaskFile
from mlfilter_core.heads.scores import ScoreColumns, Values
from mlfilter_core.tallies.score_statistics import score_statistics, write_score_statistics
from mlfilter_core.work.progress import Progress, ProgressTeller

if TYPE_CHECKING:
    from mlfilter_core.heads.head import Head

ROWS = "rows"
OF_PARTS = (ROWS, SOURCE_VERSION)  # in the provenance of parts alone

_log = logging.getLogger(__name__)


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
    started = time.monotonic()
    output = request.output(embeddings)
    with EmbeddingFile(embeddings.path, request.group) as file, publish(output) as temporary:
        made = write_scored(temporary, embeddings, file, request, heads)
        # Published first: an annotated file without matching provenance is of unknown origin, and never replaced.
        publish_json(request.provenance_file(embeddings), made)
    seconds = time.monotonic() - started
    _log.info("%s: %d documents in %.1f s", embeddings.relative, made["documents"], seconds)
    return report_of(embeddings, output, made, seconds)


def write_scored(
    target: Path, embeddings: TaskFile, file: EmbeddingFile, request: AnnotateRequest, heads: list["Head"]
) -> dict[str, Any]:
    """Scores the rows of a file, or of a part of it, and writes them to a new file.

    Args:
        target: The new file.
        embeddings: The HDF5 file, or a part of it.
        file: The same, open.
        request: The request of this run.
        heads: Heads of `request.head_sha256`, in the same order.

    Returns:
        The provenance of the annotated file; that of a part also has `OF_PARTS`.

    Raises:
        HeadError, AnnotationError, SourceError, OSError: As `annotate_file`.
    """
    from mlfilter_core.heads.head import check_heads_fit, find_mismatched_heads, score

    columns = score_columns(heads, request)
    statistics = score_statistics(columns.scores(columns.table(np.empty((0, columns.n_outputs), np.float32))))
    teller = ProgressTeller()
    all_slices = list(file.slices(request.batch_size))
    first, last = embeddings.part.bounds(len(all_slices))
    slices = all_slices[first:last]
    start, stop = (slices[0].start, slices[-1].stop) if slices else (0, 0)
    with OutputValues(file, request.output_keys, columns.names, request.source_dir) as values:
        check_heads_fit(heads, file.dim, str(embeddings.path))
        mismatched = find_mismatched_heads(
            heads, fingerprint(file.provenance), str(embeddings.path), request.allow_mismatched_head
        )
        with HashedFile(target) as on_disk, compressed(on_disk, request.compression) as sink:
            for rows in slices:
                outputs = score(heads, file.embeddings(rows))
                check_finite(outputs, heads, file, rows)
                table = columns.table(outputs, file.chunk_starts(rows))
                statistics += score_statistics(columns.scores(table))
                write_rows(sink, scored(values.records(rows), table), embeddings.path, rows)
                if teller.is_due():
                    n_done = rows.stop - start
                    teller.tell(Progress(embeddings.name, n_done, share=n_done / (stop - start)))
        if embeddings.part == WHOLE:
            values.check_complete()
        elif embeddings.part.is_last:
            values.check_unchanged()
    return {
        "request": request.provenance(),
        "embeddings": file.identity(),
        **({} if embeddings.part == WHOLE else {ROWS: [start, stop], SOURCE_VERSION: values.source_version}),
        "output": on_disk.identity(),
        "documents": stop - start,
        "columns": columns.names,
        "missing_values": values.missing_values,
        "mismatched_heads": mismatched,
        "assumed_of_heads": {head.name: list(head.assumptions) for head in heads if head.assumptions},
        # Facts of the embeddings, which may be removed later.
        "source": dict(file.provenance.source) if file.provenance else None,
        "encoder": dict(file.provenance.encoder) if file.provenance else None,
        "counts": dict(file.provenance.counts) if file.provenance else None,
        "statistics": {
            **(file.provenance.statistics if file.provenance else {}),
            "scores": write_score_statistics(statistics),
        },
    }


def report_of(embeddings: TaskFile, output: Path, made: Mapping[str, Any], seconds: float) -> AnnotateReport:
    """Returns the report of an annotated file or part, given its provenance."""
    return AnnotateReport(
        *(embeddings.name, str(output), "annotated", made["documents"], made["missing_values"]),
        *(made["mismatched_heads"], seconds),
    )


def score_columns(heads: Sequence["Head"], request: AnnotateRequest) -> ScoreColumns:
    """Returns the columns that are written beside the output keys.

    Raises:
        HeadError: Two columns would have the same name, or the request names a score that does not exist.
    """
    return ScoreColumns(
        *(heads, request.score_prefix, request.ensembles, request.integer_scales),
        *(request.combine, request.output_keys),
    )


def check_finite(outputs: NDArray[np.float32], heads: Sequence["Head"], file: EmbeddingFile, rows: slice) -> None:
    """Checks the outputs of heads for some rows of a file.

    Raises:
        AnnotationError: A score is NaN or infinite; names its document and its head.
    """
    if np.isfinite(outputs).all():
        return
    place, column = np.argwhere(~np.isfinite(outputs))[0]
    row = int(np.searchsorted(file.chunk_starts(rows), place, side="right")) - 1
    names = [head.name for head in heads for _ in range(head.n_outputs)]
    ids = file.find(DOCUMENT_ID)
    name = file.column(ids, slice(rows.start + row, rows.start + row + 1))[0] if ids else "without an id"
    raise AnnotationError(
        f"{file.path}: row {rows.start + row} (document {name}): head {names[column]} gives {outputs[place, column]}; "
        "check the head's weights, the embedding, and model_dtype (float16 overflows)"
    )


def scored(records: Iterable[Parts], table: Mapping[str, Values]) -> Iterator[Parts]:
    """Yields the records, in parts, with the values of a table added; row i belongs to record i."""
    for parts, row in zip(records, zip(*table.values(), strict=True), strict=True):
        values = parts[-1]
        assert isinstance(values, dict)
        values.update(zip(table, row, strict=True))
        yield parts


def write_rows(sink: IO[bytes], records: Iterable[Parts], path: Path, rows: slice) -> None:
    """Writes the records of some rows of a file of embeddings.

    Raises:
        AnnotationError: A value cannot be written as JSON.
    """
    try:
        write_records(sink, records)
    except orjson.JSONEncodeError as error:  # such as a complex number that another tool stored
        raise AnnotationError(
            f"{path}: rows {rows.start} to {rows.stop - 1}: a value cannot be written as JSON ({error}); leave its key "
            "out of params.output_keys"
        ) from error
