"""The true score of each document, with which predicted ones are compared."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlfilter_core.corpus.documents import DEFAULT_LABEL_KEYS, BadRecordError, as_string, find_value
from mlfilter_core.corpus.records import Record, id_key, parse_records
from mlfilter_core.corpus.source_files import find_jsonl
from mlfilter_core.errors import AnnotationError, ConfigError
from mlfilter_core.evaluation.draws import Aggregation, aggregate, valid_draws
from mlfilter_core.evaluation.file_names import in_file_names
from mlfilter_core.evaluation.scale import Scale
from mlfilter_core.tallies.tally import Tally

LANGUAGE_KEY = "language"
CONTRADICTION = "contradiction"


@dataclass
class Truth:
    """What is known of the documents.

    Attributes:
        files: Where it is from.
        scores: The true score of a document, by id; at least one.
        invalid: Documents whose label is none, or lies outside the scale.
        languages: Of the documents that state it, by id, as in the names of outputs.
        invalid_labels: Why there are `invalid` ones.
        n_merged: Records that say once more what another says.
        bad_lines: Lines that are no records with an id and a label.
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
        """Returns the ids of documents that may be in a language: those that do not say another one.

        Where all do, as its name there is not the one here, that tells nothing, and it is all ids.
        """
        ids = [document_id for document_id in self.ids() if self.languages.get(document_id, language) == language]
        return ids or list(self.ids())


def read_truth(path: Path, scale: Scale, aggregation: Aggregation, label_key: str | None) -> Truth:
    """Reads true scores, from a file or from all below a folder.

    A list of labels is draws, of which those on the scale are aggregated. A single label may lie between two of the
    scale, as a mean of draws does.

    Args:
        path: JSONL: annotations, or any records with an id and a label.
        scale: The labels.
        aggregation: Of draws.
        label_key: Where the label is; None takes the list `scores`, else the first of `DEFAULT_LABEL_KEYS`.

    Raises:
        ConfigError: There is no file.
        SourceError: A file is not readable.
        AnnotationError: No document has a valid label, or one has two.
    """
    files = find_jsonl(path, "*") if path.is_dir() else [path]
    if not files:
        raise ConfigError(f"--path_to_ground_truth_file: there is no .jsonl, .jsonl.gz or .jsonl.zst file below {path}")
    truth = Truth(files)
    places: dict[str, str] = {}
    contradictions = Tally()
    for file in files:
        for line, labelled in parse_records(file, lambda record: _parse(record, label_key), truth.bad_lines):
            score = _score(labelled.label, scale, aggregation, truth.invalid_labels, file, line)
            known, place = truth.scores.get(labelled.document_id), f"{file}:{line}"
            if labelled.language:
                truth.languages[labelled.document_id] = labelled.language
            if score is None:
                truth.invalid.add(labelled.document_id)
            elif known is None:
                truth.scores[labelled.document_id] = score
                places[labelled.document_id] = place
            elif known == score:
                truth.n_merged += 1
            else:
                first = places[labelled.document_id]
                example = f"{labelled.document_id} is {known:g} at {first}, {score:g} at {place}"
                contradictions.add(CONTRADICTION, example)
    if contradictions:
        shown = "; ".join(contradictions.examples[CONTRADICTION])
        raise AnnotationError(f"{path}: {contradictions.total:,} records contradict others: {shown}; keep one of each")
    if not truth.scores:
        why = "; ".join(str(tally) for tally in (truth.invalid_labels, truth.bad_lines) if tally)
        raise AnnotationError(
            f"{path}: no document has a valid label: {why or 'it is empty'}; check --label_key and --valid_labels"
        )
    truth.invalid -= truth.scores.keys()
    return truth


@dataclass(frozen=True, slots=True)
class _Labelled:
    """A record of the truth; `label` as it stands there."""

    document_id: str
    label: Any
    language: str | None


def _parse(record: Record, label_key: str | None) -> _Labelled:
    document_id, language = as_string(record[id_key(record)]), record.get(LANGUAGE_KEY)
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
        "no_label", f"none of {', '.join(keys)} is there; the record has: {', '.join(list(record)[:8])}"
    )


def _score(label: Any, scale: Scale, aggregation: Aggregation, invalid: Tally, path: Path, line: int) -> float | None:
    if isinstance(label, list):
        draws = valid_draws(label, frozenset(scale.labels), invalid, path, line)
        return aggregate(draws, aggregation) if draws else None
    for score in valid_draws([label], None, invalid, path, line):
        if scale.spans(score):
            return score
        invalid.add("outside_the_scale", f"{path}:{line}: {score:g}")
    return None
