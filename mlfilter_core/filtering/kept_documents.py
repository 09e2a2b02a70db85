"""The documents that a filter run writes: annotated lines as they are, or source documents with their scores."""

from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from mlfilter_core.corpus import exact_json
from mlfilter_core.corpus.lines import Line
from mlfilter_core.corpus.records import Record
from mlfilter_core.corpus.source_text import joined
from mlfilter_core.embedding_store.layout import SOURCE_OFFSET
from mlfilter_core.embedding_store.source_documents import WHOLE_DOCUMENT, SourceDocuments
from mlfilter_core.errors import AnnotationError
from mlfilter_core.files.task_files import TaskFile
from mlfilter_core.filtering.annotated_file import embeddings_of, lines_of, provenance_of, record_of, score_field
from mlfilter_core.filtering.filter_request import FilterRequest

ALL = slice(None)


@dataclass(frozen=True)
class KeptDocuments:
    """The wanted documents of an annotated file, where source documents are written.

    Attributes:
        source: Their source.
        offsets: int64 (n,), their positions in it.
        scores: Yields the fields of the scores of each, from its line in the annotated file.
    """

    source: SourceDocuments
    offsets: NDArray[np.int64]
    scores: Callable[[], Iterator[Record]]


@contextmanager
def source_documents(file: TaskFile, request: FilterRequest, wanted: NDArray[np.bool_]) -> Iterator[KeptDocuments]:
    """Opens the source of an annotated file; `check_unchanged` of the source is to be called after the last document.

    Args:
        file: The annotated file of n documents.
        request: A request with a folder of embeddings.
        wanted: bool (n,).

    Raises:
        AnnotationError: The embeddings do not belong to the file; a line is broken, as `scores` reads it.
        SourceError: The source is missing, or has another size than when it was embedded.
    """
    assert request.survey.embeddings is not None
    with embeddings_of(file, request.survey.embeddings, request.survey.group) as embeddings:
        if embeddings.n_rows != len(wanted):
            raise AnnotationError(f"{embeddings.path} was changed since {file.path} was surveyed; annotate again")
        provenance, path = provenance_of(file), file.path

        def scores() -> Iterator[Record]:
            for line in _wanted_lines(file, wanted):
                record = record_of(line, path)
                fields = provenance["columns"] if provenance else _score_fields(file, request, record)
                yield {name: record.get(name) for name in fields}

        with SourceDocuments(embeddings, request.source_dir, [WHOLE_DOCUMENT]) as source:
            yield KeptDocuments(source, embeddings.array(SOURCE_OFFSET, ALL)[wanted], scores)


def document_lines(file: TaskFile, request: FilterRequest, wanted: NDArray[np.bool_]) -> Iterator[bytes]:
    """Yields one line of JSON for each wanted document, in order.

    Args:
        file: The annotated file of n documents, or a part of it.
        request: Whether source documents are written, and where the sources are.
        wanted: bool (n,), also for a part.

    Raises:
        AnnotationError: A line is broken, the embeddings do not belong to the file, or a source document has a field
            of a score's name.
        SourceError: The source is missing, or changed since it was embedded.
    """
    start, end = file.part.bounds(len(wanted))
    own = np.zeros_like(wanted)
    own[start:end] = wanted[start:end]
    if request.survey.embeddings is None:
        yield from (line.content + b"\n" for line in _wanted_lines(file, own))
        return
    if not wanted.any():
        return
    with source_documents(file, request, own) as kept:
        documents = kept.source.documents(kept.offsets)
        for document, scores in zip(documents, kept.scores(), strict=True):
            check_no_clash(document, scores, file)
            yield joined(document.text, exact_json.dumps(scores)) + b"\n"
        if file.part.is_last:  # also without a document of its own, as it stands for the other parts
            kept.source.check_unchanged()


def source_version(file: TaskFile, request: FilterRequest) -> list[int] | None:
    """Returns size and modification time of the source of a file, in bytes and ns; None where it is not read.

    Raises:
        AnnotationError, SourceError: As `source_documents`.
    """
    if request.survey.embeddings is None:
        return None
    with embeddings_of(file, request.survey.embeddings, request.survey.group) as embeddings:
        with SourceDocuments(embeddings, request.source_dir, [WHOLE_DOCUMENT]) as source:
            return source.version


def check_no_clash(keys: Container[str], scores: Record, file: TaskFile) -> None:
    """Checks that no key of a source document is the name of a score.

    Raises:
        AnnotationError: One is.
    """
    clash = [name for name in scores if name in keys]
    if clash:
        raise AnnotationError(
            f'{file.path}: the source documents already have a key "{clash[0]}"; annotate with another score_prefix'
        )


def _wanted_lines(file: TaskFile, wanted: NDArray[np.bool_]) -> Iterator[Line]:
    lines = lines_of(file.path)
    if not file.part.is_last:
        _, end = file.part.bounds(len(wanted))
        lines, wanted = islice(lines, end), wanted[:end]
    return (line for line, is_wanted in zip(lines, wanted, strict=True) if is_wanted)


def _score_fields(file: TaskFile, request: FilterRequest, record: Record) -> Sequence[str]:
    """Returns the fields of the selected scores; without provenance, other computed fields are unknown."""
    fields = (score_field(name, record, file.path) for name in request.survey.scores)
    return [field for field in fields if field is not None]
