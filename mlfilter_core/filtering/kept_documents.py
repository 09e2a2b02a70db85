"""The documents that a filter run writes: annotated lines as they are, or source documents with their scores."""

from collections.abc import Iterator, Sequence

import numpy as np
import orjson
from numpy.typing import NDArray

from mlfilter_core.corpus.records import Record
from mlfilter_core.embedding_store.layout import SOURCE_OFFSET
from mlfilter_core.embedding_store.source_documents import WHOLE_DOCUMENT, SourceDocuments
from mlfilter_core.errors import AnnotationError
from mlfilter_core.files.task_files import TaskFile
from mlfilter_core.filtering.annotated_file import embeddings_of, lines_of, provenance_of, record_of, score_field
from mlfilter_core.filtering.filter_request import FilterRequest

ALL = slice(None)


def document_lines(file: TaskFile, request: FilterRequest, wanted: NDArray[np.bool_]) -> Iterator[bytes]:
    """Yields one line of JSON for each wanted document, in order.

    Args:
        file: The annotated file of n documents.
        request: Whether source documents are written, and where the sources are.
        wanted: bool (n,).

    Raises:
        AnnotationError: A line is broken, the embeddings do not belong to the file, or a source document has a field
            of a score's name.
        SourceError: The source is missing, or changed since it was embedded.
    """
    annotated = (line for line, is_wanted in zip(lines_of(file.path), wanted, strict=True) if is_wanted)
    folder = request.survey.embeddings
    if folder is None:
        yield from (line.content + b"\n" for line in annotated)
        return
    with embeddings_of(file, folder, request.survey.group) as embeddings:
        if embeddings.n_rows != len(wanted):
            raise AnnotationError(f"{embeddings.path} was changed since {file.path} was surveyed; annotate again")
        if not wanted.any():
            return
        offsets = embeddings.array(SOURCE_OFFSET, ALL)[wanted]
        provenance = provenance_of(file)
        with SourceDocuments(embeddings, request.source_dir, [WHOLE_DOCUMENT]) as source:
            for document, line in zip(source.documents(offsets), annotated, strict=True):
                record = record_of(line, file.path)
                fields = provenance["columns"] if provenance else _score_fields(file, request, record)
                yield _encoded(_with_scores(document, record, fields, file), line.number, file)
            source.check_unchanged()


def _score_fields(file: TaskFile, request: FilterRequest, record: Record) -> Sequence[str]:
    """Returns the fields of the selected scores; without provenance, other computed fields are unknown."""
    fields = (score_field(name, record, file.path) for name in request.survey.scores)
    return [field for field in fields if field is not None]


def _with_scores(document: Record, record: Record, fields: Sequence[str], file: TaskFile) -> Record:
    clash = [name for name in fields if name in document]
    if clash:
        raise AnnotationError(
            f'{file.path}: the source documents already have a key "{clash[0]}"; annotate with another score_prefix'
        )
    return {**document, **{name: record.get(name) for name in fields}}


def _encoded(record: Record, line: int, file: TaskFile) -> bytes:
    try:
        return orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)
    except orjson.JSONEncodeError as error:  # it writes fewer levels of nesting than it reads
        raise AnnotationError(f"{file.path}:{line}: the document cannot be written as JSON ({error})") from error
