"""A large file of embeddings in parts: tasks score them into hidden files, and another joins these into one.

A part is some of the batches of rows, so that the joined file has the lines of one that was not divided. Compressed
parts are joined as they are: readers of gzip and Zstandard take several streams as one.
"""

import json
import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from operator import add
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlfilter_core.annotating.annotate_file import (
    OF_PARTS,
    ROWS,
    annotate_file,
    report_of,
    write_scored,
)
from mlfilter_core.annotating.annotate_report import AnnotateReport
from mlfilter_core.annotating.annotate_request import AnnotateRequest
from mlfilter_core.annotating.annotated_format import SUFFIXES
from mlfilter_core.embedding_store.reader import EmbeddingFile
from mlfilter_core.errors import EmbeddingFileError
from mlfilter_core.files.identity import is_same_file
from mlfilter_core.files.new_file import HashedFile, append_file
from mlfilter_core.files.part_files import (
    MOST_PARTS,
    SOURCE_VERSION,
    do_meet,
    make_and_join,
    n_parts_before,
    part_file,
)
from mlfilter_core.files.publishing import publish, publish_json
from mlfilter_core.files.task_files import TaskFile
from mlfilter_core.tallies.score_statistics import read_score_statistics, write_score_statistics
from mlfilter_core.work.same_request import differing_fields

if TYPE_CHECKING:
    from mlfilter_core.heads.head import Head

# Arbitrary: seconds of work on two cores.
MIN_PART_ROWS = 100_000

_log = logging.getLogger(__name__)


def parts_of(embeddings: TaskFile, request: AnnotateRequest, n_wanted: int, min_rows: int = 1) -> list[TaskFile]:
    """Returns the parts of a file, as an earlier run divided it or in the wanted number; none for a single part.

    Args:
        embeddings: The file.
        request: Request of this run.
        n_wanted: Number of parts.
        min_rows: Rows that a part has at least.
    """
    n_parts = n_parts_before(request.output(embeddings))
    if not n_parts and n_wanted > 1:
        try:
            with EmbeddingFile(embeddings.path, request.group) as file:
                n_batches = sum(1 for _ in file.slices(request.batch_size))
                n_parts = min(n_wanted, MOST_PARTS, n_batches, file.n_rows // min_rows)
        except (EmbeddingFileError, OSError):  # its task reports it
            return []
    return embeddings.divided(n_parts)


def part_outputs(embeddings: TaskFile, request: AnnotateRequest) -> tuple[Path, Path]:
    """Returns the files of a part: its lines, and their provenance."""
    output, suffix = request.output(embeddings), SUFFIXES[request.compression]
    return part_file(output, embeddings.part, suffix), part_file(output, embeddings.part, f"{suffix}.json")


def annotate_part(embeddings: TaskFile, request: AnnotateRequest, heads: list["Head"]) -> AnnotateReport:
    """Scores a part of a file, unless that was done by the same request from the same embeddings.

    Raises:
        HeadError, AnnotationError, SourceError, ClusterFileError, OSError: As `annotate_file`.
    """
    started = time.monotonic()
    lines, provenance = part_outputs(embeddings, request)
    with EmbeddingFile(embeddings.path, request.group) as file:
        made = _finished_part(lines, provenance, file, request)
        if made is not None:
            return replace(report_of(embeddings, lines, made, 0.0), status="skipped")
        with publish(lines) as temporary:
            made = write_scored(temporary, embeddings, file, request, heads)
            publish_json(provenance, made)
    return report_of(embeddings, lines, made, time.monotonic() - started)


def annotate_in_parts(embeddings: TaskFile, request: AnnotateRequest, heads: list["Head"]) -> AnnotateReport:
    """Joins the parts of a file; scores those that are missing. The output appears complete or not at all.

    Args:
        embeddings: The whole file, which was divided before.
        request: Request of this run.
        heads: Heads of `request.head_sha256`, in the same order.

    Raises:
        HeadError, AnnotationError, SourceError, ClusterFileError, OSError: As `annotate_file`.
    """
    parts = parts_of(embeddings, request, 1)
    report = make_and_join(
        request.output(embeddings),
        parts,
        lambda part: part_outputs(part, request),
        lambda part: annotate_part(part, request, heads),
        lambda: _join(embeddings, parts, request),
    )
    if report is None:
        _log.warning("%s: its parts do not make the whole, and are discarded", embeddings.relative)
        return annotate_file(embeddings, request, heads)
    return report


def _join(embeddings: TaskFile, parts: Sequence[TaskFile], request: AnnotateRequest) -> AnnotateReport | None:
    """Writes the output from those of the parts; returns None where these do not make the whole."""
    started = time.monotonic()
    output = request.output(embeddings)
    outputs = [part_outputs(part, request) for part in parts]
    made = [json.loads(provenance.read_bytes()) for _, provenance in outputs]
    if not _are_all(embeddings, made, request):
        return None
    whole = _joined(made)
    if whole["documents"] in whole["missing_values"].values():
        return None
    with publish(output) as temporary:
        with HashedFile(temporary) as on_disk:
            for lines, _ in outputs:
                append_file(on_disk, lines)
        whole["output"] = on_disk.identity()
        publish_json(request.provenance_file(embeddings), whole)
    _log.info("%s: joined %d parts, %d documents", embeddings.relative, len(parts), whole["documents"])
    return report_of(embeddings, output, whole, time.monotonic() - started)


def _finished_part(
    lines: Path, provenance: Path, file: EmbeddingFile, request: AnnotateRequest
) -> dict[str, Any] | None:
    """Returns the provenance of a part that is finished by the same request, and was not changed."""
    try:
        made: dict[str, Any] = json.loads(provenance.read_bytes())
        is_ours = not differing_fields(made["request"], request.provenance())
        is_ours = is_ours and bool(file.is_version(made["embeddings"], read_content=True))
        return made if is_ours and is_same_file(lines, made["output"], read_content=True) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _are_all(embeddings: TaskFile, made: Sequence[dict[str, Any]], request: AnnotateRequest) -> bool:
    """Returns whether the parts meet, and were joined with one version of the source.

    Another run may have had batches of another size. Only the last part is compared with the source's digest.
    """
    bounds = [part[ROWS] for part in made]
    with EmbeddingFile(embeddings.path, request.group) as file:
        is_whole = do_meet(bounds) and bounds[-1][1] == file.n_rows
    return is_whole and all(part.get(SOURCE_VERSION) == made[0].get(SOURCE_VERSION) for part in made)


def _joined(made: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns the provenance of the whole file, without that of its content."""
    missing: Counter[str] = Counter()
    for part in made:
        missing.update(part["missing_values"])
    statistics = reduce(add, (read_score_statistics(part["statistics"]["scores"]) for part in made))
    first = {name: value for name, value in made[0].items() if name not in OF_PARTS}
    return {
        **first,
        "documents": sum(part["documents"] for part in made),
        "missing_values": dict(missing),
        "statistics": {**first["statistics"], "scores": write_score_statistics(statistics)},
    }
