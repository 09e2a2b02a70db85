"""Labels of documents by their ids, from JSONL files of annotations."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlfilter_core.corpus import SOURCE_SUFFIXES, find_files
from mlfilter_core.documents import BadRecordError, DocumentSchema, id_of, labels_of, parse_record
from mlfilter_core.errors import ConfigError, TrainingError
from mlfilter_core.lines import DEFAULT_MAX_LINE_BYTES, Line, SourceReader

N_EXAMPLES = 3


@dataclass(frozen=True)
class LabelTable:
    """The labels of some files.

    Attributes:
        by_id: Labels of each document.
        left_out: Lines that give no label, by reason.
        first_left_out: What is wrong with the first of them, in words; empty where there is none.
    """

    by_id: Mapping[str, tuple[float, ...]]
    left_out: Mapping[str, int]
    first_left_out: str


def label_files(path: Path) -> list[Path]:
    """Returns the files of labels: the file itself, or all JSONL files below a folder.

    Raises:
        ConfigError: There are none.
    """
    if not path.is_dir():
        return [path]
    try:
        return [file.path for file in find_files(path, "**/*", SOURCE_SUFFIXES)]
    except ConfigError as error:
        raise ConfigError(f"labels_path: {error}") from error


def read_labels(files: Sequence[Path], keys: str | tuple[str, ...] | None, id_key: str | None) -> LabelTable:
    """Reads labels. Documents that are labelled twice with the same labels count once.

    Args:
        files: JSONL files, compressed or not.
        keys: Of the label, or of several; None takes the first of `label`, `score` and `scores.score`.
        id_key: Of the document's id; None takes the first of `document_id`, `doc_id`, `id` and `uuid`.

    Raises:
        TrainingError: A document is labelled twice and differently, or no line gives a label.
        SourceError: A file is missing or unreadable.
    """
    schema = DocumentSchema((), id_key, label_keys=keys, label_dtype="float32")
    by_id: dict[str, tuple[float, ...]] = {}
    left_out: Counter[str] = Counter()
    first = ""
    contradictions: list[str] = []
    for path in files:
        for number, parsed in _records(path, schema):
            if isinstance(parsed, BadRecordError):
                left_out[parsed.reason] += 1
                first = first or f"{path}:{number}: {parsed.detail}"
                continue
            name, labels = parsed
            if by_id.setdefault(name, labels) != labels:
                contradictions.append(f"{name} ({_shown(by_id[name])} and {_shown(labels)}, {path}:{number})")
    if contradictions:
        raise TrainingError(
            f"{len(contradictions)} documents are labelled twice, and differently: "
            f"{', '.join(contradictions[:N_EXAMPLES])}; let `ml_filter aggregate_scores` make one score of several"
        )
    if not by_id:
        raise TrainingError(f"no line of {files[0]} gives a label: {first or 'it is empty'}; set label_key and id_key")
    return LabelTable(by_id, dict(left_out), first)


def _records(
    path: Path, schema: DocumentSchema
) -> Iterator[tuple[int, tuple[str, tuple[float, ...]] | BadRecordError]]:
    with SourceReader(path) as reader:
        for line in reader.lines(DEFAULT_MAX_LINE_BYTES):
            if not isinstance(line, Line):
                yield line.number, BadRecordError("line_too_long", f"longer than {DEFAULT_MAX_LINE_BYTES} bytes")
            elif line.content.strip():
                try:
                    yield line.number, _parsed(line.content, schema)
                except BadRecordError as error:
                    yield line.number, error


def _parsed(content: bytes, schema: DocumentSchema) -> tuple[str, tuple[float, ...]]:
    record = parse_record(content)
    name = id_of(record, schema.id_key, "")
    if not name:
        raise BadRecordError("missing_key", f"no id; the record has: {', '.join(list(record)[:8]) or 'nothing'}")
    return name, labels_of(record, schema)


def _shown(labels: tuple[float, ...]) -> str:
    return ", ".join(f"{label:g}" for label in labels)
