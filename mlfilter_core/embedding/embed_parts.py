"""A large source file in parts: tasks embed them into hidden files of their own, and another joins these into one.

Rejected lines and checkpoints of a part lie beside its embeddings.
"""

import json
import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from mlfilter_core.corpus.rejects import first_rejected
from mlfilter_core.corpus.source_files import most_parts
from mlfilter_core.embedding.embed_counts import DuplicateIds
from mlfilter_core.embedding.embed_file import check_rejected_fraction, embed_file, made_by
from mlfilter_core.embedding.embed_report import EmbedReport
from mlfilter_core.embedding.embed_request import EmbedRequest
from mlfilter_core.embedding_store.layout import CHUNK_ROWS, DOCUMENT_ID, Provenance
from mlfilter_core.embedding_store.reader import EmbeddingFile
from mlfilter_core.embedding_store.writer import EmbeddingWriter
from mlfilter_core.errors import EmbeddingFileError
from mlfilter_core.files.claims import hidden_name
from mlfilter_core.files.new_file import append_file, open_new
from mlfilter_core.files.part_files import do_meet, make_and_join, n_parts_before, part_file
from mlfilter_core.files.publishing import COMMITTED_SUFFIX, publish
from mlfilter_core.files.task_files import Part, TaskFile
from mlfilter_core.tallies.histogram import read_histogram, total, write_histogram
from mlfilter_core.versions import library_versions
from mlfilter_core.work.same_request import differing_fields

if TYPE_CHECKING:
    from mlfilter_core.encoder.encoder import Encoder

SUMMED = ("lines", "documents", "rejected", "blank", "truncated", "tokens", "chunks", "out_of_memory")

_log = logging.getLogger(__name__)


def parts_of(source: TaskFile, output: Path, n_wanted: int) -> list[TaskFile]:
    """Returns the parts of a file, as an earlier run divided it or in the wanted number; none for a single part.

    A file whose checkpoint shows that it was begun as a whole is not divided. A format may allow fewer parts.
    """
    n_parts = n_parts_before(output)
    if not n_parts and n_wanted > 1 and not hidden_name(output, COMMITTED_SUFFIX).exists():
        n_parts = min(n_wanted, most_parts(source.path))
    return source.divided(n_parts)


def part_outputs(output: Path, part: Part) -> tuple[Path, Path]:
    """Returns the files of a part: its embeddings, and its rejected lines."""
    return part_file(output, part, ".h5"), part_file(output, part, ".jsonl")


def embed_part(source: TaskFile, output: Path, request: EmbedRequest, encoder: "Encoder") -> EmbedReport:
    """Embeds a part of a file, unless that was done with the same encoder from the same source.

    Args:
        source: The part.
        output: The HDF5 file of the whole source.
        request: Request of this run.
        encoder: The encoder of `request.model` and `request.encoder`.

    Raises:
        SourceError, OSError: As `embed_file`.
    """
    embeddings, rejects = part_outputs(output, source.part)
    finished = _finished_part(source, embeddings, request, encoder)
    # A part may have more bad lines than the file may.
    return finished or embed_file(source, embeddings, rejects, replace(request, max_rejected_fraction=1.0), encoder)


def embed_in_parts(
    source: TaskFile, output: Path, rejects: Path, request: EmbedRequest, encoder: "Encoder"
) -> EmbedReport:
    """Joins the parts of a file; embeds those that are missing. `output` appears complete or not at all.

    Args:
        source: The whole file, which was divided before.
        output: The HDF5 file to make; replaced where it exists.
        rejects: File of the rejected lines; absent afterwards where there were none.
        request: Request of this run.
        encoder: The encoder of `request.model` and `request.encoder`.

    Raises:
        SourceError, OSError: As `embed_file`.
    """
    parts = parts_of(source, output, 1)
    report = make_and_join(
        output,
        parts,
        lambda part: part_outputs(output, part.part),
        lambda part: embed_part(part, output, request, encoder),
        lambda: _join(source, parts, output, rejects, request, encoder),
    )
    if report is None:
        _log.warning("%s: its parts do not meet, and are discarded; the whole file is embedded", source.relative)
        return embed_file(source, output, rejects, request, encoder)
    return report


def _join(
    source: TaskFile,
    parts: Sequence[TaskFile],
    output: Path,
    rejects: Path,
    request: EmbedRequest,
    encoder: "Encoder",
) -> EmbedReport | None:
    """Writes the outputs from those of the parts; returns None where these do not make the whole."""
    started = time.monotonic()
    outputs = [part_outputs(output, part.part) for part in parts]
    made = [_provenance(path, request.group) for path, _ in outputs]
    if not _are_of_one_source(made):
        return None
    counts = _sums(made)
    bad_lines = [path for _, path in outputs if path.exists()]
    first = first_rejected(bad_lines[0]) if bad_lines else ""
    check_rejected_fraction(source, counts["lines"], Counter(counts["rejected_by_reason"]), first, request)
    with (
        publish(output) as temporary,
        _joined_lines(bad_lines, rejects),
        request.open_writer(temporary, encoder.dim) as writer,
    ):
        counts["duplicate_ids"] = _copy_rows([path for path, _ in outputs], writer, request.group)
        writer.finish(_joined_provenance(made, request, counts))
    _log.info("%s: joined %d parts, %d documents", source.relative, len(parts), counts["documents"])
    seconds = time.monotonic() - started
    return EmbedReport(source.relative, str(output), "embedded", **counts, seconds=seconds, encoder=str(encoder))


def _copy_rows(paths: Sequence[Path], writer: EmbeddingWriter, group: str) -> int:
    """Writes the rows of several files one after another; returns the number of repeated ids."""
    ids = DuplicateIds()
    for path in paths:
        with EmbeddingFile(path, group) as file:
            for rows in file.slices(CHUNK_ROWS):
                columns, of_chunks = file.stored(rows)
                writer.append_stored(columns, of_chunks)
                ids.add(columns[DOCUMENT_ID])
    return ids.count()


def _joined_provenance(made: Sequence[Provenance], request: EmbedRequest, counts: Mapping[str, Any]) -> Provenance:
    last = made[-1]  # has read the whole source, and knows its digest
    statistics = [read_histogram(each.statistics["document_tokens"]) for each in made]
    return Provenance(
        source={name: value for name, value in last.source.items() if name != "lines"},
        request=request.provenance(),
        encoder=last.encoder,
        counts=counts,
        versions=library_versions(),
        statistics={"document_tokens": write_histogram(total(statistics))},
    )


def _finished_part(source: TaskFile, embeddings: Path, request: EmbedRequest, encoder: "Encoder") -> EmbedReport | None:
    if not embeddings.exists():
        return None
    try:
        made = _provenance(embeddings, request.group)
    except EmbeddingFileError as error:
        _log.warning("%s is made again: %s", embeddings, error)
        return None
    status = source.path.stat()
    if (status.st_size, status.st_mtime_ns) != (made.source["bytes"], made.source["mtime_ns"]):
        _log.warning("%s is made again: %s changed", embeddings, source.path)
        return None
    was = made_by({**made.request, **made.encoder})
    now = json.loads(json.dumps(made_by({**request.provenance(), **encoder.provenance()})))
    if was != now:
        _log.info("%s is made again, by another request: %s", embeddings, differing_fields(was, now))
        return None
    return EmbedReport(source.name, str(embeddings), "skipped", **made.counts)


def _provenance(embeddings: Path, group: str) -> Provenance:
    with EmbeddingFile(embeddings, group) as file:
        if file.provenance is None:
            raise EmbeddingFileError(f"{embeddings} has no provenance; remove it")
        return file.provenance


def _are_of_one_source(made: Sequence[Provenance]) -> bool:
    """Returns whether each part begins where the one before it ends, in the same version of the source.

    Parts of compressed files may not meet where nodes have different libraries for decompression.
    """
    return (
        do_meet([each.source["lines"] for each in made])
        and len({(each.source["bytes"], each.source["mtime_ns"]) for each in made}) == 1
    )


def _sums(made: Sequence[Provenance]) -> dict[str, Any]:
    by_reason: Counter[str] = Counter()
    for each in made:
        by_reason.update(each.counts["rejected_by_reason"])
    sums = {name: sum(each.counts[name] for each in made) for name in SUMMED if name in made[0].counts}
    return {**sums, "rejected_by_reason": dict(sorted(by_reason.items()))}


@contextmanager
def _joined_lines(bad_lines: Sequence[Path], rejects: Path) -> Iterator[None]:
    """Makes the file of rejected lines from those of the parts; it appears when the block ends without an error."""
    with ExitStack() as stack:
        if bad_lines:
            target: IO[bytes] = stack.enter_context(open_new(stack.enter_context(publish(rejects))))
            for path in bad_lines:
                append_file(target, path)
        yield
    if not bad_lines:
        rejects.unlink(missing_ok=True)
