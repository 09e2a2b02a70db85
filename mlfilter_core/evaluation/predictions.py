"""The scores that annotators give to the documents whose true scores are known."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mlfilter_core.corpus.records import parse_records
from mlfilter_core.corpus.source_files import find_jsonl
from mlfilter_core.errors import AnnotationError, ConfigError
from mlfilter_core.evaluation.annotation_files import annotator_of_records, find_annotation_files, parse_annotation
from mlfilter_core.evaluation.draws import Aggregation, aggregate, valid_draws
from mlfilter_core.evaluation.file_names import check_file_name, in_file_names
from mlfilter_core.evaluation.scale import Scale
from mlfilter_core.evaluation.score_fields import ScoredRecord, ScoreFields
from mlfilter_core.evaluation.truth import LANGUAGE_KEY, Truth
from mlfilter_core.tallies.tally import Tally

UNDETERMINED = "und"  # as ISO 639 says it; of a file right below the root folder
WITHOUT_TRUTH = "predicted_without_truth"


@dataclass
class Predictions:
    """The scores of one annotator in one language.

    Attributes:
        annotator: As in the names of the outputs.
        language: The same.
        made_from: The first file.
        documents: Records with an id.
        scores: Of the documents in the truth, by id; None where no draw is valid.
        without_truth: The others.
        invalid_draws: By reason.
        duplicates: Documents scored once more, `with_same_score` or `with_other_score`; the last counts.
    """

    annotator: str
    language: str
    made_from: Path
    documents: int = 0
    scores: dict[str, float | None] = field(default_factory=dict)
    without_truth: Tally = field(default_factory=Tally)
    invalid_draws: Tally = field(default_factory=Tally)
    duplicates: Tally = field(default_factory=Tally)

    def add(self, document_id: str, score: float | None, truth: Truth) -> None:
        """Takes a document's score, which is kept only where there is a true one."""
        self.documents += 1
        if document_id not in truth:
            self.without_truth.add(WITHOUT_TRUTH, document_id)
            return
        if document_id in self.scores:
            is_same = self.scores[document_id] == score
            self.duplicates.add("with_same_score" if is_same else "with_other_score", document_id)
        self.scores[document_id] = score


def read_annotators(
    folder: Path, truth: Truth, scale: Scale, aggregation: Aggregation, bad_lines: Tally
) -> list[Predictions]:
    """Reads annotation files: a file is an annotator in the language that its folder names.

    Args:
        folder: Searched for them. Files of the truth are left out: it is often kept among them.
        truth: The documents that count.
        scale: The labels that a draw may be.
        aggregation: How draws become one score.
        bad_lines: Takes lines that are no annotations.

    Raises:
        ConfigError: There are none.
        AnnotationError: Two files are of one annotator in one language, or a file of two annotators.
        SourceError: A file is not readable.
    """
    true_files = {path.resolve() for path in truth.files}
    files = [path for path in find_annotation_files(folder) if path.resolve() not in true_files]
    if not files:
        raise ConfigError(f"--input_directory: the only annotation files below {folder} are the ground truth")
    predictions = [Predictions(annotator_of_records(path), _language_of_folder(path), path) for path in files]
    _check_names(predictions)
    labels = frozenset(scale.labels)
    for part in predictions:
        for line, annotation in parse_records(part.made_from, parse_annotation, bad_lines):
            draws = valid_draws(annotation.scores, labels, part.invalid_draws, part.made_from, line)
            part.add(annotation.document_id, aggregate(draws, aggregation) if draws else None, truth)
    return predictions


def read_heads(folder: Path, truth: Truth, score_fields: ScoreFields, bad_lines: Tally) -> list[Predictions]:
    """Reads annotated files: each score field is an annotator, in the language that the record or its folder names.

    Any finite number is a valid score.

    Args:
        folder: All files below it are read.
        truth: The documents that count. Memory depends on them alone.
        score_fields: Which fields are scores.
        bad_lines: Takes lines that are no records with an id.

    Raises:
        ConfigError: There are no files.
        AnnotationError: A file has no such fields, or two languages or fields would have one name.
        SourceError: A file is not readable.
    """
    files = find_jsonl(folder, "*")
    if not files:
        raise ConfigError(f"--input_directory: there is no .jsonl, .jsonl.gz or .jsonl.zst file below {folder}")
    found: dict[tuple[str, str], Predictions] = {}
    for path in files:
        for row in _rows(path, score_fields, bad_lines):
            language = row.record.get(LANGUAGE_KEY)
            if not isinstance(language, str) or not language:
                language = _language_of_folder(path)
            for name, value in row.scores.items():
                part = found.get((name, language))
                if part is None:
                    part = found[name, language] = Predictions(in_file_names(name), in_file_names(language), path)
                draws = valid_draws([value], None, part.invalid_draws, path, row.line)
                part.add(row.document_id, draws[0] if draws else None, truth)
    predictions = list(found.values())
    _check_names(predictions)
    return predictions


def _rows(path: Path, score_fields: ScoreFields, bad_lines: Tally) -> Iterator[ScoredRecord]:
    for row in score_fields.read(path):
        if isinstance(row, ScoredRecord):
            yield row
        else:
            line, error = row
            bad_lines.add(error.reason, f"{path}:{line}: {error.detail}")


def _language_of_folder(path: Path) -> str:
    folder = path.parent
    return (folder if folder.name not in ("", "..") else folder.resolve()).name or UNDETERMINED


def _check_names(predictions: list[Predictions]) -> None:
    """Refuses names that cannot be those of outputs, or would be those of two."""
    known: dict[tuple[str, str], Predictions] = {}
    for part in predictions:
        for what, name in (("annotator", part.annotator), ("language", part.language)):
            check_file_name(what, name, part.made_from)
        other = known.setdefault((part.annotator, part.language), part)
        if other is not part:
            raise AnnotationError(
                f"two annotators are named {part.annotator} in {part.language}, those of {other.made_from} and "
                f"{part.made_from}; rename one, or join the files if they are parts of one annotator's work"
            )
