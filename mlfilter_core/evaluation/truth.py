"""The true score of each document, which predicted scores are compared with."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlfilter_core.corpus.documents import DEFAULT_LABEL_KEYS, BadRecordError, find_value, string_at
from mlfilter_core.corpus.records import Record, id_key, parse_records
from mlfilter_core.errors import AnnotationError
from mlfilter_core.evaluation.draws import Aggregation, Scoring
from mlfilter_core.evaluation.input_files import find_inputs, in_file_names
from mlfilter_core.evaluation.scale import Scale
from mlfilter_core.tallies.tally import Tally

LANGUAGE_KEY = "language"
CONTRADICTION = "contradiction"


@dataclass
class Truth:
    """The documents with known scores.

    Attributes:
        files: Label files that were read.
        scores: True score by document id; at least one.
        invalid: Documents without a label on the scale.
        languages: Language by document id, as in names of outputs, where the record states it.
        invalid_labels: Reasons for `invalid`.
        n_merged: Number of records that repeat another one.
        bad_lines: Lines without a record, an id or a label.
    """

    files: list[Path]
    scores: dict[str, float] = field(default_factory=dict)
    invalid: set[str] = field(default_factory=set)
    languages: dict[str, str] = field(default_factory=dict)
    invalid_labels: Tally = field(default_factory=Tally)
    n_merged: int = 0
    bad_lines: Tally = field(default_factory=Tally)

    def __contains__(self, document_id: str) -> bool:
        return document_id in self.scores or document_id in self.invalid

    def ids(self) -> Iterator[str]:
        """Yields all ids."""
        yield from self.scores
        yield from sorted(self.invalid)

    def ids_in(self, language: str) -> list[str]:
        """Returns the ids of documents that may be in a language: all but those that state another one.

        If every document states another one, the truth names languages differently, and all ids are returned.
        """
        ids = [document_id for document_id in self.ids() if self.languages.get(document_id, language) == language]
        return ids or list(self.ids())


def read_truth(path: Path, scale: Scale, aggregation: Aggregation, label_key: str | None) -> Truth:
    """Reads a label file, or all label files below a folder.

    A list of labels is aggregated like draws. A single label may lie between two labels of the scale, as a mean does.

    Args:
        path: JSONL file or folder: draw files, or any records with an id and a label.
        scale: Valid labels.
        aggregation: Aggregation of a list of labels to one score.
        label_key: Key of the label; None takes the list `scores`, else the first of `DEFAULT_LABEL_KEYS`.

    Raises:
        ConfigError: There is no file.
        SourceError: A file is not readable.
        AnnotationError: No document has a valid label, or one has two different ones.
    """
    files = find_inputs(path, "--path-to-ground-truth-file") if path.is_dir() else [path]
    truth = Truth(files)
    places: dict[str, str] = {}
    contradictions = Tally()
    for file in files:
        for line, labelled in parse_records(file, lambda record: _parse(record, label_key), truth.bad_lines):
            document_id, place = labelled.document_id, f"{file}:{line}"
            score = _score(labelled.label, scale, aggregation, truth.invalid_labels, place)
            known = truth.scores.get(document_id)
            if labelled.language:
                truth.languages[document_id] = labelled.language
            if score is None:
                truth.invalid.add(document_id)
            elif known is None:
                truth.scores[document_id] = score
                places[document_id] = place
            elif known == score:
                truth.n_merged += 1
            else:
                example = f"{document_id} is {known:g} at {places[document_id]}, {score:g} at {place}"
                contradictions.add(CONTRADICTION, example)
    _check_usable(truth, contradictions, path)
    truth.invalid -= truth.scores.keys()
    return truth


@dataclass(frozen=True, slots=True)
class _Labelled:
    """A record of the truth, with the label as it stands there."""

    document_id: str
    label: Any
    language: str | None


def _parse(record: Record, label_key: str | None) -> _Labelled:
    document_id, language = string_at(record, id_key(record)), record.get(LANGUAGE_KEY)
    return _Labelled(
        document_id, _label(record, label_key), in_file_names(language) if isinstance(language, str) else None
    )


def _label(record: Record, label_key: str | None) -> Any:
    if label_key is None and isinstance(record.get("scores"), list):
        return record["scores"]
    keys = DEFAULT_LABEL_KEYS if label_key is None else (label_key,)
    for key in keys:
        try:
            return find_value(record, key)
        except KeyError:
            continue
    raise BadRecordError(
        "no_label", f"none of {', '.join(keys)} is present; the record has: {', '.join(list(record)[:8])}"
    )


def _score(label: Any, scale: Scale, aggregation: Aggregation, invalid: Tally, place: str) -> float | None:
    if isinstance(label, list):
        return Scoring(aggregation, scale).score(label, invalid, place)
    score = Scoring(aggregation).score([label], invalid, place)
    if score is not None and not scale.spans(score):
        invalid.add("outside_the_scale", f"{place}: {score:g}")
        return None
    return score


def _check_usable(truth: Truth, contradictions: Tally, path: Path) -> None:
    if contradictions:
        shown = "; ".join(contradictions.examples[CONTRADICTION])
        raise AnnotationError(f"{path}: {contradictions.total:,} records contradict others: {shown}; keep one of each")
    if not truth.scores:
        why = "; ".join(str(tally) for tally in (truth.invalid_labels, truth.bad_lines) if tally)
        raise AnnotationError(
            f"{path}: no document has a valid label: {why or 'it is empty'}; check --label-key and --valid-labels"
        )
