"""The fourth step of a deduplication job: the duplicates of a file, and its documents that are kept."""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import orjson
from numpy.typing import NDArray

from mlfilter_core.annotating.annotated_format import SUFFIXES, Compression, compressed
from mlfilter_core.config.deduplication import SUMMARY_FILE
from mlfilter_core.deduplication.distribute import annotated_file, annotated_lines
from mlfilter_core.deduplication.settle import Duplicates
from mlfilter_core.embedding_store.duplicate_file import (
    COSINE,
    DUPLICATE_OF,
    KEPT_FILE,
    KEPT_ROW,
    NEAR_FILE,
    NEAR_ROW,
    SUFFIX,
    made_from,
    number_of,
    write_duplicates,
)
from mlfilter_core.embedding_store.layout import DOCUMENT_ID, SOURCE_OFFSET
from mlfilter_core.embedding_store.reader import EmbeddingFile
from mlfilter_core.embedding_store.source_documents import WHOLE_DOCUMENT, SourceDocuments
from mlfilter_core.errors import AnnotationError, DuplicateFileError, EmbeddingFileError, OutputConflictError
from mlfilter_core.files.identity import is_same_file
from mlfilter_core.files.new_file import HashedFile
from mlfilter_core.files.publishing import publish
from mlfilter_core.files.task_files import TaskFile
from mlfilter_core.filtering.annotated_file import identity_of as identity_of_annotated
from mlfilter_core.wording import plural, share
from mlfilter_core.work.same_request import REPLACE, are_same_embeddings, check_same_request
from mlfilter_core.work.workload import ReportDefaults

ASKED_BY = "write_documents without annotated_directory reads the sources: "

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MarkRequest:
    """The settings for every file of a deduplication run.

    Attributes:
        duplicates_dir: Folder of the files of duplicates.
        documents_dir: Folder of the kept documents.
        writes_documents: Whether they are written.
        group: Name of the HDF5 group.
        groups_sha256: Digest of the duplicates of the corpus.
        annotated: Folder of the annotated files whose lines are written; None for source documents.
        source_dir: Folder of the sources; None where they have not moved since they were embedded.
        compression: Compression of the written documents.
    """

    duplicates_dir: Path
    documents_dir: Path
    writes_documents: bool
    group: str
    groups_sha256: str
    annotated: Path | None
    source_dir: Path | None
    compression: Compression

    def output(self, file: TaskFile) -> Path:
        return file.output(self.duplicates_dir, SUFFIX)

    def documents(self, file: TaskFile) -> Path | None:
        """Returns the file of the kept documents; None where they are not written."""
        return file.output(self.documents_dir, SUFFIXES[self.compression]) if self.writes_documents else None

    def others(self, file: TaskFile) -> list[Path]:
        """Returns where other requests would write the kept documents; readers of the folder would read them, too."""
        paths = [file.output(self.documents_dir, suffix) for suffix in SUFFIXES.values()]
        return [path for path in paths if path != self.documents(file)]

    def outputs(self, file: TaskFile) -> Sequence[Path]:
        documents = self.documents(file)
        return (self.output(file), *(() if documents is None else (documents,)))

    def annotated_file(self, file: TaskFile) -> TaskFile | None:
        """Returns the annotated file whose lines are written; None where none are.

        Raises:
            AnnotationError: It is missing.
        """
        return annotated_file(file, self.annotated) if self.writes_documents and self.annotated is not None else None

    def provenance(self) -> dict[str, Any]:
        """Returns the settings that change the content of the outputs."""
        written = None if not self.writes_documents else "source" if self.annotated is None else "annotated"
        return {
            "group": self.group,
            "groups_sha256": self.groups_sha256,
            "documents": written,
            "compression": None if written is None else self.compression,
        }


@dataclass(frozen=True)
class DeduplicateReport(ReportDefaults):
    """The result of deduplicating one file.

    Attributes:
        embeddings: Path relative to the folder of embeddings.
        output: The file of duplicates.
        status: `deduplicated`, or `skipped` where the outputs were finished before.
        documents: Number of documents.
        kept: Number of documents that are kept.
        duplicates: Number of documents that are not.
        tokens: Number of tokens, of documents where it is known.
        kept_tokens: Those of the kept documents.
        seconds: Wall time; 0 where skipped.
        worker: Name of the process; empty where skipped.
        started: Start time in seconds since 1970, UTC; 0 where skipped.
    """

    SUMMED: ClassVar[Sequence[str]] = ("documents", "kept", "duplicates", "tokens", "kept_tokens")
    PRINTED: ClassVar[Sequence[str]] = (*SUMMED, "seconds", "documents/s")

    embeddings: str
    output: str
    status: Literal["deduplicated", "skipped"]
    documents: int
    kept: int
    duplicates: int
    tokens: int
    kept_tokens: int
    seconds: float = 0.0
    worker: str = ""
    started: float = 0.0

    @staticmethod
    def remarks_on(reports: "Sequence[DeduplicateReport]") -> list[str]:
        """Returns what is kept of the corpus, and the share of pairs that the search finds."""
        n, kept = sum(report.documents for report in reports), sum(report.kept for report in reports)
        tokens, kept_tokens = sum(report.tokens for report in reports), sum(report.kept_tokens for report in reports)
        of_tokens = f", {share(kept_tokens, tokens)} of the tokens" if tokens else ""
        remarks = [f"kept {kept:,} of {plural(n, 'document')}, {share(kept, n)}{of_tokens}"]
        first = reports[0]
        summary = Path(first.output).parents[len(Path(first.embeddings).parts) - 1].with_name(SUMMARY_FILE)
        try:
            recall = orjson.loads(summary.read_bytes())["recall"]
        except (OSError, ValueError, KeyError):  # it is said with the files that fail
            return remarks
        if recall is not None and recall["pairs"]:
            remarks.append(
                f"the search compared {share(recall['found'], recall['pairs'])} of the {recall['pairs']:,} pairs that "
                "are similar enough, of some documents with all others"
            )
        elif recall is not None:
            remarks.append(
                "no document of the sample has a near-duplicate, so that the share of pairs found is unknown"
            )
        return remarks


def mark_duplicates(file: TaskFile, request: MarkRequest, duplicates: Duplicates) -> DeduplicateReport:
    """Writes the duplicates of a file, and its documents that are kept where asked; complete or not at all.

    Args:
        file: The file of embeddings.
        request: The request of the run.
        duplicates: Duplicates of `request.groups_sha256`.

    Raises:
        AnnotationError: The annotated file is missing, broken, or was not made from the file.
        EmbeddingFileError: The file is broken, or was made again since its duplicates were found.
        SourceError: The source is missing, or changed since it was embedded.
        OSError: Reading or writing failed.
    """
    started = time.monotonic()
    outputs = request.outputs(file)
    with EmbeddingFile(file.path, request.group) as embeddings, ExitStack() as stack:
        place = duplicates.place_of(file.stem)
        if place is None or number_of(embeddings.identity()) != int(duplicates.identities[place]):
            raise EmbeddingFileError(
                f"{file.path} was made again since its duplicates were found; remove {duplicates.path}, and run again"
            )
        batch = duplicates.of_file(place)
        is_kept = np.ones(embeddings.n_rows, bool)
        is_kept[batch["row"].to_numpy()] = False
        tokens = embeddings.tokens(slice(None))
        made: dict[str, Any] = {
            "embeddings": embeddings.identity(),
            "request": request.provenance(),
            "documents": embeddings.n_rows,
            "kept": int(is_kept.sum()),
            "tokens": int(tokens.sum()),
            "kept_tokens": int(tokens[is_kept].sum()),
            "annotated": None,
            "output": None,
        }
        targets = [stack.enter_context(publish(path)) for path in reversed(outputs)]
        if len(targets) > 1:
            annotated = request.annotated_file(file)
            if annotated is not None:
                made["annotated"] = identity_of_annotated(annotated)  # before reading, so that a change is noticed
            with HashedFile(targets[0]) as on_disk:
                with compressed(on_disk, request.compression) as sink:
                    sink.writelines(_kept_lines(file, embeddings, request, is_kept))
            if annotated is not None and not is_same_file(annotated.path, made["annotated"], read_content=False):
                raise AnnotationError(f"{annotated.path} was changed while it was read; run the job again")
            made["output"] = on_disk.identity()
        write_duplicates(targets[-1], _table(embeddings, batch), made)
    for path in request.others(file):
        path.unlink(missing_ok=True)
    seconds = time.monotonic() - started
    _log.info("%s: %d of %d documents kept in %.1f s", file.relative, made["kept"], made["documents"], seconds)
    return _report(file, request, "deduplicated", made, seconds)


def finished_marks(file: TaskFile, request: MarkRequest, read_content: bool) -> DeduplicateReport | None:
    """Returns the report of finished outputs, or None where the file is not finished.

    Args:
        file: The file of embeddings.
        request: The request of this run.
        read_content: Whether to read a file whose modification time differs; otherwise it counts as not finished.

    Raises:
        OutputConflictError: The outputs were made from other embeddings, by another request or another tool.
    """
    output, documents = request.output(file), request.documents(file)
    for path in request.others(file):
        if path.exists():
            raise OutputConflictError(f"{path} was made by another request; {REPLACE}")
    try:
        made = made_from(output)
    except FileNotFoundError:
        return None
    except DuplicateFileError as error:
        raise OutputConflictError(f"{error}; {REPLACE}") from error
    check_same_request(output, made["request"], request.provenance())
    are_same = are_same_embeddings(output, file.path, request.group, made["embeddings"], read_content)
    if documents is not None and are_same:
        if not documents.exists():
            return None
        are_same = is_same_file(documents, made["output"], read_content)
        if are_same is False:
            raise OutputConflictError(f"{documents} was changed since it was written; {REPLACE}")
        annotated = request.annotated_file(file)
        if annotated is not None and are_same:
            are_same = is_same_file(annotated.path, made["annotated"], read_content)
            if are_same is False:
                raise OutputConflictError(f"{documents} has lines of another version of {annotated.path}; {REPLACE}")
    return None if are_same is None else _report(file, request, "skipped", made)


def _kept_lines(
    file: TaskFile, embeddings: EmbeddingFile, request: MarkRequest, is_kept: NDArray[np.bool_]
) -> Iterator[bytes]:
    """Yields the line of each document that is kept."""
    if (annotated := request.annotated_file(file)) is not None:
        for row, line in enumerate(annotated_lines(annotated, embeddings)):
            if row < len(is_kept) and is_kept[row]:
                yield line.content + b"\n"
        return
    with SourceDocuments(embeddings, request.source_dir, [WHOLE_DOCUMENT], asked_by=ASKED_BY) as source:
        offsets = embeddings.array(SOURCE_OFFSET, slice(None))[is_kept]
        yield from (document.text.strip() + b"\n" for document in source.documents(offsets))
        source.check_unchanged()


def _table(embeddings: EmbeddingFile, batch: Any) -> Any:
    """Returns a row for each document of a file, given its duplicates; the columns of kept documents are null."""
    import pyarrow as pa

    n = embeddings.n_rows
    places = np.zeros(n, np.int64)
    rows = batch["row"].to_numpy()
    places[rows] = np.arange(len(rows))
    is_null = np.ones(n, bool)
    is_null[rows] = False
    indices = pa.array(places, mask=is_null)
    columns = {
        name: batch[name].take(indices) for name in (DUPLICATE_OF, KEPT_FILE, KEPT_ROW, NEAR_FILE, NEAR_ROW, COSINE)
    }
    if DOCUMENT_ID in embeddings.names():
        ids = pa.array(embeddings.strings(DOCUMENT_ID, slice(None)), pa.string())
        columns = {DOCUMENT_ID: ids, **columns}
    return pa.table(columns)


def _report(
    file: TaskFile,
    request: MarkRequest,
    status: Literal["deduplicated", "skipped"],
    made: Any,
    seconds: float = 0.0,
) -> DeduplicateReport:
    return DeduplicateReport(
        *(file.relative, str(request.output(file)), status, made["documents"], made["kept"]),
        *(made["documents"] - made["kept"], made["tokens"], made["kept_tokens"], seconds),
    )
