"""Rows of a file of embeddings, with their scores, clusters, duplicates and beginnings of texts, as Arrow tables."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mlfilter_core.embedding_store.clusters_of_rows import ValuesOf
from mlfilter_core.embedding_store.reader import EmbeddingFile
from mlfilter_core.errors import EmbeddingFileError, in_one_line
from mlfilter_core.exporting.annotated_scores import AnnotatedScores
from mlfilter_core.exporting.columns import Column, list_type


def schema_of(columns: Sequence[Column], has_chunks: bool) -> pa.Schema:
    """Returns the schema of the columns; where documents have chunks, lists of embeddings. Nothing is null."""
    return pa.schema(
        [
            pa.field(
                column.name,
                list_type(column.type) if has_chunks and column.of == "embedding" else column.type,
                nullable=False,
            )
            for column in columns
        ]
    )


def table_of(
    rows: slice,
    file: EmbeddingFile,
    stored: Mapping[str, NDArray[Any]],
    scores: AnnotatedScores | None,
    joined: Mapping[str, ValuesOf],
    columns: Sequence[Column],
    schema: pa.Schema,
) -> pa.Table:
    """Returns the values of some columns.

    Args:
        rows: Documents that follow those of the previous call.
        file: Their file.
        stored: Their embeddings and scales, by column.
        scores: Their scores, where there are any.
        joined: Functions from rows to their values, by name, for each column of clusters, duplicates and texts.
        columns: The columns.
        schema: Their `schema_of`.

    Raises:
        EmbeddingFileError: A value cannot be read.
        AnnotationError: A score is missing or has another type than those of the first document.
    """
    of_lines = scores.next(rows.stop - rows.start) if scores is not None else None
    arrays: list[Any] = []
    for column, field in zip(columns, schema, strict=True):
        if column.of == "embedding":
            arrays.append(_by_document(_array(stored[column.name], column.type), field.type, rows, file))
        elif of_lines is not None and column.of == "score":
            arrays.append(of_lines[column.place])
        elif column.name in joined:
            arrays.append(pa.array(joined[column.name](rows), column.type))
        elif column.element == pa.string():
            # Bytes, as HDF5 has them: Arrow checks that they are UTF-8, three times as fast as h5py decodes them.
            arrays.append(_strings(column.place, rows, file))
        else:
            arrays.append(_array(file.array(column.place, rows), column.type))
    return pa.Table.from_arrays(arrays, schema=schema)


def finite_embeddings(rows: slice, file: EmbeddingFile) -> tuple[NDArray[Any], NDArray[np.float32] | None]:
    """Returns the embeddings of some documents and their scales as they are stored.

    Raises:
        EmbeddingFileError: They cannot be read, or one is not finite.
    """
    vectors, scales = file.stored_embeddings(rows)
    values = vectors if scales is None else scales[:, None]
    if not np.isfinite(values).all():
        place = int(np.argmin(np.isfinite(values).all(axis=1)))
        row = rows.start + int(np.searchsorted(file.chunk_starts(rows), place, side="right")) - 1
        raise EmbeddingFileError(f"{file.path}: the embedding of row {row} is not finite; embed its source again")
    return _native(vectors), scales


def _by_document(values: pa.Array, of_document: pa.DataType, rows: slice, file: EmbeddingFile) -> pa.Array:
    """Returns values of embeddings as they are, or as a list for each document."""
    if values.type == of_document:
        return values
    offsets = np.append(file.chunk_starts(rows), len(values)).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), values, type=of_document)


def _strings(place: str, rows: slice, file: EmbeddingFile) -> pa.Array:
    try:
        return pa.array(file.array(place, rows).astype(object), pa.string())
    except pa.ArrowInvalid as error:
        file.column(place, rows)  # names the place
        raise EmbeddingFileError(f"{file.path}: {place}: {in_one_line(error)}; embed its source again") from error


def _array(values: NDArray[Any], of: pa.DataType) -> pa.Array:
    values = _native(values)
    if values.ndim == 1:
        return pa.array(values, of)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), type=of)


def _native(values: NDArray[Any]) -> NDArray[Any]:
    return values.astype(values.dtype.newbyteorder("="), copy=False)
