"""The columns of an export: which there are, their Arrow types, and where their values come from.

Knows nothing about writing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

import pyarrow as pa
from numpy.typing import NDArray

from mlfilter_core.embedding_store.duplicate_file import COSINE, DUPLICATE_OF
from mlfilter_core.embedding_store.layout import (
    CLUSTER,
    DISTANCE,
    DOCUMENT_ID,
    EMBEDDING_SCALE,
    EMBEDDINGS,
    FIRST_CHUNK,
    INDEX,
    NAME,
)
from mlfilter_core.embedding_store.reader import EmbeddingFile
from mlfilter_core.embedding_store.text_beginnings import may_have_texts
from mlfilter_core.errors import ConfigError, EmbeddingFileError
from mlfilter_core.heads.scores import LABEL_PREFIX

EMBEDDING = "embedding"
TEXT_BEGINNING = "text_beginning"
NO_ROWS = slice(0, 0)


@dataclass(frozen=True)
class Column:
    """A column of the exported files.

    Attributes:
        name: Its name.
        place: Dataset of the HDF5 file, field of the annotated lines, or key of the clusters, duplicates or texts.
        of: Where its values come from: `document` and `embedding` from the HDF5 file, with a row for each of these,
            `score` from the annotated lines, `cluster` and `duplicate` from the files of these, `text` from the source.
        element: Type of its numbers or strings; of an embedding where documents have several.
        length: Length of its vectors; None where it has none.
        is_list: Whether its values are lists.
    """

    name: str
    place: str
    of: Literal["document", "embedding", "score", "cluster", "duplicate", "text"]
    element: pa.DataType
    length: int | None = None
    is_list: bool = False

    @property
    def type(self) -> pa.DataType:
        """Type of a value. It is no field, as pickling a type of lists loses whether their elements may be null."""
        if self.length is not None:
            return pa.list_(pa.field("element", self.element, nullable=False), self.length)
        return list_type(self.element) if self.is_list else self.element


OF_CLUSTERS = (
    Column(CLUSTER, CLUSTER, "cluster", pa.int32()),
    Column(DISTANCE, DISTANCE, "cluster", pa.float32()),
    Column(NAME, NAME, "cluster", pa.string()),
)
OF_DUPLICATES = (
    Column(DUPLICATE_OF, DUPLICATE_OF, "duplicate", pa.string()),
    Column(f"duplicate_{COSINE}", COSINE, "duplicate", pa.float32()),
)
OF_TEXTS = (Column(TEXT_BEGINNING, TEXT_BEGINNING, "text", pa.string()),)


def columns_of(
    file: EmbeddingFile, first_line: Mapping[str, Any] | None, of_others: Sequence[Column] = ()
) -> list[Column]:
    """Returns the columns that a file has: ids first, then scores, clusters, duplicates, the rest, embeddings.

    Datasets of types or shapes that Parquet does not have are left out.

    Args:
        file: The file of embeddings.
        first_line: Scores of the first document, by field; None where none are exported.
        of_others: Columns of the clusters and duplicates that are exported.

    Raises:
        EmbeddingFileError: The embeddings have such a type.
    """
    joined = [_score_column(name, value) for name, value in (first_line or {}).items()]
    joined += of_others
    texts = OF_TEXTS if may_have_texts(file) else ()
    reserved = {
        EMBEDDING,
        EMBEDDINGS,
        EMBEDDING_SCALE,
        FIRST_CHUNK,
        *(column.name for column in (*joined, *texts)),
    }
    stored: list[Column] = []
    for place in file.names():
        key = place.removeprefix(f"{INDEX}/")
        name = place if key in reserved or key in file.names() else key
        if name not in reserved:  # as in annotated files, scores and clusters take the place of what has their names
            stored += [Column(name, place, "document", *of) for of in [_type_of(file, place)] if of is not None]
    stored.sort(key=lambda column: column.place != DOCUMENT_ID)
    n_ids = sum(column.place == DOCUMENT_ID for column in stored)
    vectors, scales = file.stored_embeddings(NO_ROWS)
    if (number := _number_type(vectors)) is None:
        raise EmbeddingFileError(f"{file.path}: embeddings are {vectors.dtype}, which Parquet does not have")
    embedding = [Column(EMBEDDING, EMBEDDINGS, "embedding", number, file.dim)]
    if scales is not None:
        embedding.append(Column(EMBEDDING_SCALE, EMBEDDING_SCALE, "embedding", pa.float32()))
    return [*stored[:n_ids], *joined, *stored[n_ids:], *texts, *embedding]


def chosen(columns: Sequence[Column], patterns: Sequence[str] | None, place: str) -> list[Column]:
    """Returns the columns that are asked for, in the order of their patterns; the scale follows the embedding.

    Args:
        columns: All columns of a file.
        patterns: Names or patterns; None takes ids, scores, clusters, duplicates and embeddings. Only its whole name
            takes the beginning of the text, for which sources are read.
        place: Name of the file, for messages.

    Raises:
        ConfigError: A pattern matches no column, or no pattern is given.
    """
    if patterns is None:
        patterns = (
            DOCUMENT_ID,
            *(column.name for column in columns if column.of in ("score", "cluster", "duplicate")),
            EMBEDDING,
        )
    found: dict[str, Column] = {}
    for pattern in patterns:
        matching = [column for column in columns if pattern == column.name]
        matching = matching or [
            column for column in columns if column.of != "text" and fnmatchcase(column.name, pattern)
        ]
        if not matching:
            raise ConfigError(
                f'--columns: {place} has no column "{pattern}"; it has: {", ".join(column.name for column in columns)}'
            )
        if matching[0].name == EMBEDDING:
            matching += [column for column in columns if column.name == EMBEDDING_SCALE]
        found.update({column.name: column for column in matching})
    if not found:
        raise ConfigError("--columns names no column; give names or patterns, such as document_id,score_*,embedding")
    return list(found.values())


def embedding_bytes(columns: Sequence[Column]) -> int:
    """Returns the bytes of an embedding; 0 where none is exported."""
    return sum(column.element.bit_width // 8 * (column.length or 0) for column in columns if column.name == EMBEDDING)


def list_type(element: pa.DataType) -> pa.DataType:
    """Returns the type of lists without nulls."""
    return pa.list_(pa.field("element", element, nullable=False))


def _type_of(file: EmbeddingFile, name: str) -> tuple[pa.DataType, int | None] | None:
    """Returns the type of a dataset's elements, and the width of its rows if it has two dimensions.

    None for a dataset that cannot be exported.
    """
    values = file.column(name, NO_ROWS)
    if isinstance(values, list):
        return pa.string(), None
    if values.ndim > 2 or (number := _number_type(values)) is None:
        return None
    return number, None if values.ndim == 1 else values.shape[1]


def _number_type(values: NDArray[Any]) -> pa.DataType | None:
    try:
        return pa.from_numpy_dtype(values.dtype.newbyteorder("="))
    except pa.ArrowNotImplementedError:
        return None


def _score_column(name: str, value: Any) -> Column:
    """Returns the column of a field of the annotated lines, from its first value; None where there is no document."""
    match value:
        case bool():
            element = pa.bool_()
        case int():
            element = pa.int64()
        case str():
            element = pa.string()
        case list():  # the labels of a multilabel head, of which a document may have none; the scores of chunks
            element = pa.string() if name.startswith(LABEL_PREFIX) else pa.float32()
        case _:
            element = pa.float32()
    return Column(name, name, "score", element, is_list=isinstance(value, list))
