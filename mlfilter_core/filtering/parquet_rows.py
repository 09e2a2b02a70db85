"""The rows of Parquet sources that a filter run keeps, with the source's columns and the scores."""

from typing import IO

import numpy as np
from numpy.typing import NDArray

from mlfilter_core.corpus.parquet_source import ParquetSource
from mlfilter_core.files.task_files import TaskFile
from mlfilter_core.filtering.filter_request import FilterRequest
from mlfilter_core.filtering.kept_documents import check_no_clash, source_documents
from mlfilter_core.filtering.parquet import kinds_of, write_rows


def write_source_rows(
    output: IO[bytes], file: TaskFile, request: FilterRequest, wanted: NDArray[np.bool_], float_fields: set[str]
) -> bool:
    """Writes the wanted rows of a Parquet source with their scores; returns False for a source of another format.

    Args:
        output: The open file to write.
        file: The annotated file of n documents.
        request: Request of the filter run.
        wanted: bool (n,).
        float_fields: Fields that are written as doubles, whatever their values are.

    Raises:
        AnnotationError: As `document_lines`.
        SourceError: As `document_lines`.
    """
    if request.survey.embeddings is None or not len(wanted):
        return False
    shown = wanted.copy()
    shown[:1] |= not wanted.any()  # a file without rows gets the columns of the scores from its first document
    with source_documents(file, request, shown) as kept:
        source = kept.source.source
        if not isinstance(source, ParquetSource):
            return False
        kinds = kinds_of(kept.scores())
        kinds |= dict.fromkeys(float_fields & kinds.keys(), "float")
        check_no_clash(source.keys, dict.fromkeys(kinds), file)
        rows = source.rows_at(kept.offsets)
        if not wanted.any():
            rows = (row.slice(0, 0) for row in rows)
        write_rows(output, rows, source.schema, kept.scores(), kinds)
        kept.source.check_unchanged()
    return True
