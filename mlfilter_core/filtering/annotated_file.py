"""The lines of an annotated file, one for each document, and the embeddings that they were made from."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson

from mlfilter_core.annotating.annotated_format import provenance_path
from mlfilter_core.config.filtering import SCORE_PREFIX
from mlfilter_core.corpus.documents import BadRecordError
from mlfilter_core.corpus.lines import DEFAULT_MAX_LINE_BYTES, Line, OverlongLine, SourceReader
from mlfilter_core.corpus.records import Record, parse_line
from mlfilter_core.embedding_store.layout import EMBEDDING_SUFFIXES
from mlfilter_core.embedding_store.reader import EmbeddingFile
from mlfilter_core.errors import AnnotationError
from mlfilter_core.files.identity import file_identity, is_same_file
from mlfilter_core.files.task_files import TaskFile


def lines_of(path: Path) -> Iterator[Line]:
    """Yields each line that is not blank.

    Raises:
        AnnotationError: A line is too long.
        SourceError: The file is missing, unreadable or truncated.
    """
    with SourceReader(path, has_digest=False) as reader:
        for line in reader.lines(DEFAULT_MAX_LINE_BYTES):
            if isinstance(line, OverlongLine):
                raise AnnotationError(f"{path}:{line.number}: the line has more than {DEFAULT_MAX_LINE_BYTES} bytes")
            if line.content and not line.content.isspace():
                yield line


def record_of(line: Line, path: Path, large_numbers: bool = True) -> Record:
    """Returns the record of a line; `large_numbers` as for `parse_record`.

    Raises:
        AnnotationError: The line is not a JSON object.
    """
    record = parse_line(line.content, large_numbers)
    if isinstance(record, BadRecordError):
        raise AnnotationError(f"{path}:{line.number}: {record.detail}; annotate the file again")
    return record


def score_field(name: str, record: Record, path: Path, asked_by: str = "params.keep") -> str | None:
    """Returns the field of a line that contains a score; None where the line has none.

    Args:
        name: Name of the score.
        record: The line.
        path: Path of its file.
        asked_by: Job field that names the score.

    Raises:
        AnnotationError: The name matches two fields.
    """
    prefixed = SCORE_PREFIX + name
    if name not in record:
        return prefixed if prefixed in record else None
    if prefixed in record:
        raise AnnotationError(f'{path}: a line has both "{name}" and "{prefixed}"; give {asked_by} the latter')
    return name


def provenance_of(file: TaskFile) -> Mapping[str, Any] | None:
    """Returns the provenance of an annotated file; None for a file of another tool, or changed since it was written."""
    made = recorded_provenance(file)
    return made if made is not None and is_same_file(file.path, made["output"], read_content=True) else None


def recorded_provenance(file: TaskFile) -> Mapping[str, Any] | None:
    """Returns the provenance that lies beside an annotated file, which may have changed since; None for none."""
    try:
        made: dict[str, Any] = orjson.loads(provenance_path(file.folder, file.relative).read_bytes())
        return made if {"bytes", "mtime_ns", "sha256"} <= made["output"].keys() else None
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return None


def identity_of(file: TaskFile) -> dict[str, Any]:
    """Returns the identity of an annotated file, for `is_same_file`; reads the file where no provenance records it."""
    made = recorded_provenance(file)
    if made is not None and is_same_file(file.path, made["output"], read_content=False):
        return dict(made["output"])
    return file_identity(file.path)


def embeddings_path(file: TaskFile, folder: Path) -> Path | None:
    """Returns the path of the embeddings of an annotated file; None where there are none."""
    return next((path for suffix in EMBEDDING_SUFFIXES if (path := folder / f"{file.stem}{suffix}").exists()), None)


@contextmanager
def embeddings_of(file: TaskFile, folder: Path, group: str) -> Iterator[EmbeddingFile]:
    """Opens the embeddings that an annotated file was made from.

    Raises:
        AnnotationError: They are missing, or the annotated file was not made from them.
        EmbeddingFileError: The file is not a file of embeddings.
    """
    path = embeddings_path(file, folder)
    if path is None:
        raise AnnotationError(
            f"{file.path}: there is no {folder / file.stem}{EMBEDDING_SUFFIXES[0]}, the embeddings that were scored; "
            "correct params.embeddings_directory, or leave it out to write the annotated lines as they are"
        )
    made = recorded_provenance(file)
    if made is not None and not is_same_file(file.path, made["output"], read_content=True):
        raise AnnotationError(
            f"{file.path} was changed since it was annotated, so its lines may not be in the order of {path}; annotate "
            "it again, or leave params.embeddings_directory out to write its lines as they are"
        )
    if made is not None and "embeddings" not in made:
        raise AnnotationError(
            f"{file.path} was not written by an annotation, so its lines are not the rows of {path}; leave "
            "params.embeddings_directory out to write them as they are"
        )
    with EmbeddingFile(path, group) as embeddings:
        # For embeddings without provenance, the annotation recorded size and modification time; copies lose the latter.
        if made is not None and embeddings.provenance is not None and embeddings.identity() != made["embeddings"]:
            raise AnnotationError(f"{file.path} was made from another version of {path}; annotate it again")
        yield embeddings
