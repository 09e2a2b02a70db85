"""Files of annotations, as language models write them: which there are, and what one record says."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlfilter_core.corpus.documents import BadRecordError, as_string, find_value
from mlfilter_core.corpus.records import Record, id_key, read_records
from mlfilter_core.corpus.source_files import find_jsonl, stem_of
from mlfilter_core.errors import AnnotationError, ConfigError
from mlfilter_core.evaluation.file_names import in_file_names

NAMES = ("annotations_*", "*__annotations_*")
MODEL_KEYS = ("meta_information.model_name", "meta_information.model")
RAW_KEY = "meta_information.raw_data_file_path"


@dataclass(frozen=True, slots=True)
class Annotation:
    """What an annotator says of one document.

    Attributes:
        document_id: As a string, whatever it is in the file.
        scores: The draws as they are written, valid or not.
    """

    document_id: str
    scores: list[Any]


def find_annotation_files(folder: Path) -> list[Path]:
    """Returns the annotation files below a folder, sorted by path.

    Raises:
        ConfigError: There are none, or the folder is not readable.
    """
    found = find_jsonl(folder, *NAMES)
    if not found:
        others = find_jsonl(folder, "*")
        instead = f"there are {len(others)} other .jsonl files, as {others[0]}" if others else "there is no .jsonl file"
        raise ConfigError(
            f"--input_directory: no file below {folder} is named annotations_*.jsonl or *__annotations_*.jsonl; "
            f"{instead}. For the scores of annotated files give --score_keys, such as 'score_*'"
        )
    return found


def parse_annotation(record: Record) -> Annotation:
    """Reads one record.

    Raises:
        BadRecordError: It has no id, or no list of scores.
    """
    document_id = as_string(record[id_key(record)])
    scores = record.get("scores")
    if not isinstance(scores, list):
        raise BadRecordError("no_scores", '"scores" is missing, or no list such as [1, null, 2]')
    return Annotation(document_id, scores)


def raw_data_file(record: Record) -> str:
    """Returns the path of the raw file that an annotated document is from.

    Raises:
        BadRecordError: The record does not say it.
    """
    path = _string(record, RAW_KEY)
    if path is None:
        raise BadRecordError("no_raw_data_file", f'"{RAW_KEY}" is missing, or no path')
    return path


def annotator_of_name(path: Path) -> str:
    """Returns what a file's name calls its annotator: `gt` for `annotations__edu__en__gt.jsonl`."""
    return stem_of(path).rpartition("_")[2]


def annotator_of_records(path: Path) -> str:
    """Returns the model that made the annotations of a file, `/` as `__`; where no record says it, as its name does.

    Raises:
        AnnotationError: Two models did.
    """
    first: tuple[int, str] | None = None
    for line, record in read_records(path):
        model = None if isinstance(record, BadRecordError) else _model(record)
        if model is None:
            continue
        if first is None:
            first = line, model
        elif model != first[1]:
            raise AnnotationError(
                f"{path}:{line}: the annotator is {model}, that of line {first[0]} is {first[1]}; divide the file"
            )
    return in_file_names(first[1]) if first else annotator_of_name(path)


def _model(record: Record) -> str | None:
    return next((model for key in MODEL_KEYS if (model := _string(record, key))), None)


def _string(record: Record, key: str) -> str | None:
    try:
        value = find_value(record, key)
    except KeyError:
        return None
    return value if isinstance(value, str) and value and "\0" not in value else None
