"""The scores that annotators predict for the documents of the truth."""

from dataclasses import dataclass, field
from pathlib import Path

from mlfilter_core.corpus.records import parse_records
from mlfilter_core.errors import AnnotationError, ConfigError
from mlfilter_core.evaluation.draws import Scoring, keep_last
from mlfilter_core.evaluation.input_files import (
    annotator_of_records,
    find_draw_files,
    find_inputs,
    in_file_names,
    parse_draws,
)
from mlfilter_core.evaluation.score_fields import ScoreFields
from mlfilter_core.evaluation.truth import LANGUAGE_KEY, Truth
from mlfilter_core.tallies.tally import Tally

UNDETERMINED = "und"  # ISO 639's code; for files directly below the root folder
MAX_NAME_BYTES = 200  # a file name has at most 255 bytes; the names of outputs add up to 30 to the annotator
WITHOUT_TRUTH = "predicted_without_truth"
HEAD_SCORING = Scoring("mean")  # a head gives one score, which may be any finite number


@dataclass
class Predictions:
    """The scores of one annotator in one language.

    Attributes:
        annotator: Name, as in names of outputs.
        language: Language, as in names of outputs.
        source: First file with these scores.
        documents: Number of records with an id.
        scores: Score by id of the documents in the truth; None where no draw is valid.
        without_truth: The other documents.
        invalid_draws: Draws that were ignored, by reason.
        duplicates: Documents scored again, `with_same_score` or `with_other_score`; the last score counts.
    """

    annotator: str
    language: str
    source: Path
    documents: int = 0
    scores: dict[str, float | None] = field(default_factory=dict)
    without_truth: Tally = field(default_factory=Tally)
    invalid_draws: Tally = field(default_factory=Tally)
    duplicates: Tally = field(default_factory=Tally)

    def add(self, document_id: str, score: float | None, truth: Truth) -> None:
        """Counts a document, and keeps its score if the truth contains it."""
        self.documents += 1
        if document_id in truth:
            keep_last(self.scores, document_id, score, self.duplicates)
        else:
            self.without_truth.add(WITHOUT_TRUTH, document_id)


def read_annotators(folder: Path, truth: Truth, scoring: Scoring, bad_lines: Tally) -> list[Predictions]:
    """Reads draw files: each contains one annotator in the language that names its folder.

    Args:
        folder: Folder to search. Label files of the truth, which are often kept there too, are skipped.
        truth: Documents to keep.
        scoring: Aggregation of draws to one score.
        bad_lines: Receives the lines without an id or draws.

    Raises:
        ConfigError: There are no draw files.
        AnnotationError: Two files contain one annotator in one language, or a file contains two annotators.
        SourceError: A file is not readable.
    """
    label_files = {path.resolve() for path in truth.files}
    files = [path for path in find_draw_files(folder) if path.resolve() not in label_files]
    if not files:
        raise ConfigError(f"--input-directory: the only draw files below {folder} are the ground truth")
    predictions = [Predictions(annotator_of_records(path), _language_of_folder(path), path) for path in files]
    _check_names(predictions)
    for part in predictions:
        for line, (document_id, draws) in parse_records(part.source, parse_draws, bad_lines):
            part.add(document_id, scoring.score(draws, part.invalid_draws, f"{part.source}:{line}"), truth)
    return predictions


def read_heads(folder: Path, truth: Truth, score_fields: ScoreFields, bad_lines: Tally) -> list[Predictions]:
    """Reads annotated files: each score field is an annotator, in the language of the record or else of the folder.

    Args:
        folder: Folder whose JSONL files are read.
        truth: Documents to keep; memory depends on them alone.
        score_fields: Fields with scores.
        bad_lines: Receives the lines without a record or an id.

    Raises:
        ConfigError: There are no files.
        AnnotationError: A file has no such fields, or two languages or fields share one name in file names.
        SourceError: A file is not readable.
    """
    found: dict[tuple[str, str], Predictions] = {}
    for path in find_inputs(folder, "--input-directory", written_by="annotate"):
        for row in filter(None, score_fields.read(path, bad_lines)):
            language = row.record.get(LANGUAGE_KEY)
            if not isinstance(language, str) or not language:
                language = _language_of_folder(path)
            for name, value in row.scores.items():
                part = found.get((name, language))
                if part is None:
                    part = found[name, language] = Predictions(in_file_names(name), in_file_names(language), path)
                score = HEAD_SCORING.score([value], part.invalid_draws, f"{path}:{row.line}")
                part.add(row.document_id, score, truth)
    _check_names(list(found.values()))
    return list(found.values())


def _language_of_folder(path: Path) -> str:
    folder = path.parent
    return (folder if folder.name not in ("", "..") else folder.resolve()).name or UNDETERMINED


def _check_names(predictions: list[Predictions]) -> None:
    """Checks that every name can be a file name, and that no two outputs share one."""
    known: dict[tuple[str, str], Predictions] = {}
    for part in predictions:
        for what, name in (("annotator", part.annotator), ("language", part.language)):
            if name in ("", ".", "..") or "\0" in name or len(name.encode()) > MAX_NAME_BYTES:
                shown = name[:MAX_NAME_BYTES].replace("\0", "\\0")
                raise AnnotationError(
                    f'{part.source}: the {what} "{shown}" cannot be a file name; rename it in this file'
                )
        other = known.setdefault((part.annotator, part.language), part)
        if other is not part:
            raise AnnotationError(
                f"two annotators in {part.language} are named {part.annotator}, in {other.source} and {part.source}; "
                "rename one, or join the files if they are parts of one annotator's work"
            )
