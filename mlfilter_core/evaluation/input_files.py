"""The search for input files, and the parsing of the records of draw files.

A draw file is a JSONL file with the draws of one annotator, such as a language model, for many documents. ML-Filter,
which introduced the format, calls them annotations, and so do the names of the files.
"""

from contextlib import suppress
from pathlib import Path
from typing import Any

from mlfilter_core.corpus.documents import BadRecordError, find_value, string_at
from mlfilter_core.corpus.records import Record, id_key, read_records
from mlfilter_core.corpus.source_files import find_jsonl, stem_of
from mlfilter_core.errors import AnnotationError, ConfigError

STEMS = ("annotations_*", "*__annotations_*")
MODEL_KEYS = ("meta_information.model_name", "meta_information.model")
RAW_KEY = "meta_information.raw_data_file_path"


def find_inputs(folder: Path, option: str, written_by: str = "") -> list[Path]:
    """Returns the JSONL files below a folder, sorted by path.

    Args:
        folder: The folder.
        option: Option that names it, for the message.
        written_by: Command that writes such files, for the message; empty where none does.

    Raises:
        ConfigError: There are none, or the folder is not readable.
    """
    found = find_jsonl(folder, "*")
    if not found:
        advice = f"; run `ml_filter {written_by}` first, which writes such files" if written_by else ""
        raise ConfigError(f"{option}: there is no .jsonl file below {folder}, compressed or not{advice}")
    return found


def find_draw_files(folder: Path) -> list[Path]:
    """Returns the draw files below a folder, sorted by path.

    Raises:
        ConfigError: There are none, or the folder is not readable.
    """
    found = find_jsonl(folder, *STEMS)
    if not found:
        others = find_jsonl(folder, "*")
        instead = f"other .jsonl files: {len(others)}, such as {others[0]}" if others else "there is no .jsonl file"
        raise ConfigError(
            f"--input-directory: no file below {folder} is named annotations_*.jsonl or *__annotations_*.jsonl; "
            f"{instead}. To use the scores in annotated files, give --score-keys, such as 'score_*'"
        )
    return found


def parse_draws(record: Record) -> tuple[str, list[Any]]:
    """Returns the id of a document, as a string, and its draws unchanged, valid or not.

    Raises:
        BadRecordError: The record has no id or no list of draws.
    """
    draws = record.get("scores")
    document_id = string_at(record, id_key(record))
    if not isinstance(draws, list):
        raise BadRecordError("no_scores", '"scores" is missing or not a list such as [1, null, 2]')
    return document_id, draws


def raw_data_file(record: Record) -> str:
    """Returns the path of the raw file that contains the document of a record.

    Raises:
        BadRecordError: The record has no such path.
    """
    path = _string(record, RAW_KEY)
    if path is None:
        raise BadRecordError("no_raw_data_file", f'"{RAW_KEY}" is missing or not a path')
    return path


def in_file_names(text: str) -> str:
    """Returns a name without slashes, as ML-Filter writes it: `meta-llama__Llama-3` for `meta-llama/Llama-3`."""
    return text.replace("/", "__")


def annotator_of_name(path: Path) -> str:
    """Returns the annotator according to the file name: `gt` for `annotations__edu__en__gt.jsonl`."""
    return stem_of(path).rpartition("_")[2]


def annotator_of_records(path: Path) -> str:
    """Returns the model that the records name, with `__` for `/`; without one, the annotator of the file name.

    Raises:
        AnnotationError: The records name two models.
        SourceError: The file is not readable.
    """
    first_lines: dict[str, int] = {}
    for line, record in read_records(path):
        model = None if isinstance(record, BadRecordError) else _string(record, *MODEL_KEYS)
        if model:
            first_lines.setdefault(model, line)
        if len(first_lines) > 1:
            first = next(iter(first_lines))
            raise AnnotationError(
                f"{path}:{line}: the annotator is {model}, but in line {first_lines[first]} it is {first}; split "
                "the file"
            )
    return in_file_names(next(iter(first_lines))) if first_lines else annotator_of_name(path)


def _string(record: Record, *keys: str) -> str | None:
    """Returns the first value that is a string, not empty and without NUL."""
    for key in keys:
        with suppress(KeyError):
            value = find_value(record, key)
            if isinstance(value, str) and value and "\0" not in value:
                return value
    return None
