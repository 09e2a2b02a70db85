"""Labels by document id, from JSONL files of annotations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from mlfilter_core.corpus.documents import MISSING_LABEL, BadRecordError, DocumentSchema, id_of, labels_of
from mlfilter_core.corpus.records import Record, parse_records
from mlfilter_core.corpus.source_files import JSONL_SUFFIXES
from mlfilter_core.errors import ConfigError, TrainingError
from mlfilter_core.files.task_files import find_files
from mlfilter_core.tallies.tally import Tally

DRAWS = "scores"  # key of several draws of one annotator: [1, null, 2]
CONTRADICTION = "contradiction"


@dataclass(frozen=True)
class LabelTable:
    """The labels of JSONL files.

    Attributes:
        by_id: Labels of each document, one for each target.
        bad_lines: Lines without a valid label.
    """

    by_id: Mapping[str, tuple[float, ...]]
    bad_lines: Tally

    @property
    def remarks(self) -> tuple[str, ...]:
        """Remarks for a person. These lines are not among the documents left out, whose labels they may be."""
        return (f"lines of labels_path without a valid label: {self.bad_lines}",) if self.bad_lines else ()


def label_files(path: Path) -> list[Path]:
    """Returns the file itself, or all JSONL files below a folder.

    Raises:
        ConfigError: The folder contains none.
    """
    if not path.is_dir():
        return [path]
    try:
        return [file.path for file in find_files(path, "**/*", JSONL_SUFFIXES)]
    except ConfigError as error:
        raise ConfigError(f"labels_path: {error}") from error


def read_labels(
    files: Sequence[Path],
    keys: str | tuple[str, ...] | None,
    id_key: str | None,
    scale: tuple[float, float] | None = None,
) -> LabelTable:
    """Reads labels. A document may be labelled more than once, with the same labels.

    Args:
        files: JSONL files, compressed or not.
        keys: Key of the label, or keys of several; None takes the mean of a list of `scores`, else the first of
            `label`, `score` and `scores.score`.
        id_key: Key of the document id; None takes the first of `document_id`, `doc_id`, `id`, `uuid` and
            `warc_record_id`.
        scale: Lowest and highest label. Draws outside the scale, such as -1 for "no answer", are ignored.

    Raises:
        TrainingError: A document has different labels, or no line has a label.
        SourceError: A file is missing or unreadable.
    """
    schema = DocumentSchema((), id_key, label_keys=keys, label_dtype="float32")
    by_id: dict[str, tuple[float, ...]] = {}
    bad_lines, contradictions = Tally(), Tally()
    for path in files:
        for line, (name, labels) in parse_records(path, lambda record: _labelled(record, schema, scale), bad_lines):
            if by_id.setdefault(name, labels) != labels:
                shown = f"{name} ({_shown(by_id[name])} and {_shown(labels)}, {path}:{line})"
                contradictions.add(CONTRADICTION, shown)
    if contradictions:
        raise TrainingError(
            f"{contradictions.total} documents are labelled twice, and differently: "
            f"{', '.join(contradictions.examples[CONTRADICTION])}; aggregate the labels with `ml_filter "
            "aggregate-scores`"
        )
    if not by_id:
        raise TrainingError(f"{files[0]}: no line has a label: {bad_lines or 'it is empty'}; set label_key and id_key")
    return LabelTable(by_id, bad_lines)


def _labelled(
    record: Record, schema: DocumentSchema, scale: tuple[float, float] | None
) -> tuple[str, tuple[float, ...]]:
    name = id_of(record, schema.id_key, "")
    if not name:
        raise BadRecordError("missing_key", f"no id; the record has: {', '.join(list(record)[:8]) or 'nothing'}")
    draws = record.get(DRAWS)
    if schema.label_keys is not None or not isinstance(draws, list):
        return name, labels_of(record, schema)
    valid = [draw for draw in draws if isinstance(draw, (int, float)) and not isinstance(draw, bool)]
    if scale is not None:
        valid = [draw for draw in valid if scale[0] <= draw <= scale[1]]
    if not valid:
        raise BadRecordError(MISSING_LABEL, f'none of "{DRAWS}" is a number{"" if scale is None else " on the scale"}')
    return name, labels_of({"label": fmean(valid)}, schema)


def _shown(labels: tuple[float, ...]) -> str:
    return ", ".join(f"{label:g}" for label in labels)
