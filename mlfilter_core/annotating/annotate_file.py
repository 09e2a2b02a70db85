"""One HDF5 file of embeddings to one annotated JSONL file, every head in one pass."""

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlfilter_core.annotating.annotate_report import AnnotateReport
from mlfilter_core.annotating.annotate_request import AnnotateRequest
from mlfilter_core.annotating.annotated_format import compressed
from mlfilter_core.embedding_store.fingerprint import fingerprint
from mlfilter_core.embedding_store.output_values import OutputValues
from mlfilter_core.embedding_store.reader import EmbeddingFile
from mlfilter_core.files.new_file import HashedFile
from mlfilter_core.files.part_files import SOURCE_VERSION
from mlfilter_core.files.publishing import publish, publish_json
from mlfilter_core.files.task_files import WHOLE, TaskFile
from mlfilter_core.heads.scores import ScoreColumns
from mlfilter_core.tallies.score_statistics import write_score_statistics
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
        ClusterFileError: Its file of clusters is missing, broken, or belongs to other embeddings or centroids.
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
        HeadError, AnnotationError, SourceError, ClusterFileError, OSError: As `annotate_file`.
    """
    from mlfilter_core.annotating.scored_rows import write_scored_rows
    from mlfilter_core.heads.head import check_heads_fit, find_mismatched_heads

    columns = score_columns(heads, request)
    teller = ProgressTeller()
    all_slices = list(file.slices(request.batch_size))
    first, last = embeddings.part.bounds(len(all_slices))
    slices = all_slices[first:last]
    start, stop = (slices[0].start, slices[-1].stop) if slices else (0, 0)

    def tell(rows: slice) -> None:
        if teller.is_due():
            n_done = rows.stop - start
            teller.tell(Progress(embeddings.name, n_done, share=n_done / (stop - start)))

    clusters = request.cluster_values(embeddings, file)
    with OutputValues(file, request.output_keys, columns.names, request.source_dir, clusters) as values:
        check_heads_fit(heads, file.dim, str(embeddings.path))
        mismatched = find_mismatched_heads(
            heads, fingerprint(file.provenance), str(embeddings.path), request.allow_mismatched_head
        )
        with HashedFile(target) as on_disk, compressed(on_disk, request.compression) as sink:
            statistics = write_scored_rows(sink, file, slices, heads, columns, values, tell)
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
