"""The evaluation of all annotators below a folder, in every language, against the truth."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from mlfilter_core.errors import AnnotationError
from mlfilter_core.evaluation.comparison import INVALID, Comparison, Measuring, compare
from mlfilter_core.evaluation.draws import Aggregation
from mlfilter_core.evaluation.evaluation_report import EvaluationReport
from mlfilter_core.evaluation.figures import draw_confusion, draw_invalid, draw_scores
from mlfilter_core.evaluation.predictions import WITHOUT_TRUTH, Predictions, read_annotators, read_heads
from mlfilter_core.evaluation.score_fields import ScoreFields
from mlfilter_core.evaluation.truth import Truth, read_truth
from mlfilter_core.files.new_file import open_new
from mlfilter_core.files.publishing import check_writable, publish, publish_json
from mlfilter_core.tallies.tally import N_EXAMPLES, Tally, merged

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """What is asked of an evaluation.

    Attributes:
        input_directory: Folder of the annotators' files.
        output_directory: Where the results go.
        truth: File or folder of the true labels.
        aggregation: How several draws become one score.
        measuring: How to compare.
        label_key: Where a record of the truth has its label; None takes the usual places.
        score_fields: Fields of annotated files that are annotators; None takes annotation files.
    """

    input_directory: Path
    output_directory: Path
    truth: Path
    aggregation: Aggregation
    measuring: Measuring
    label_key: str | None = None
    score_fields: ScoreFields | None = None


def evaluate(request: Evaluation) -> EvaluationReport:
    """Compares every annotator with the truth, in each language and in all together, and writes what it finds.

    `<language>/ir_gt_<annotator>.json` and pictures beside it; pictures of all languages together, `evaluation.json`
    and `evaluation.md` in the output folder itself.

    Raises:
        ConfigError: There are no files, or the output folder cannot be written to.
        SourceError: A file is not readable.
        AnnotationError: The truth contradicts itself or has no valid label, two annotators have one name, or one of
            them scores no document of the truth.
        OSError: Reading or writing failed.
    """
    scale = request.measuring.scale
    check_writable(request.output_directory, "--output_directory")
    truth = read_truth(request.truth, scale, request.aggregation, request.label_key)
    bad_lines = Tally()
    if request.score_fields is None:
        predictions = read_annotators(request.input_directory, truth, scale, request.aggregation, bad_lines)
    else:
        predictions = read_heads(request.input_directory, truth, request.score_fields, bad_lines)
    if not predictions:
        raise AnnotationError(
            f"{request.input_directory}: no line is a record with an id: {bad_lines or 'all are empty'}"
        )
    comparisons = []
    predictions.sort(key=lambda part: (part.annotator, part.language))
    for _, of_annotator in groupby(predictions, lambda part: part.annotator):
        parts = list(of_annotator)
        _check_matched(parts, truth, request.truth)
        groups = [[part] for part in parts] + ([parts] if len(parts) > 1 else [])
        comparisons += [compare(group, truth, request.measuring) for group in groups]
        _log.info("%s: compared in %d languages", parts[0].annotator, len(parts))
    report = EvaluationReport(_facts(request), truth, bad_lines, request.measuring.thresholds, comparisons)
    _write(report, request.output_directory)
    return report


def _facts(request: Evaluation) -> dict[str, Any]:
    return {
        "input_directory": str(request.input_directory),
        "path_to_ground_truth_file": str(request.truth),
        "aggregation_strategy": request.aggregation,
        "valid_labels": request.measuring.scale.labels,
        "thresholds": request.measuring.thresholds,
        "label_key": request.label_key,
        "score_keys": request.score_fields.written if request.score_fields else None,
        "bootstrap": request.measuring.n_resamples,
        "seed": request.measuring.seed,
    }


def _check_matched(parts: Sequence[Predictions], truth: Truth, path: Path) -> None:
    if any(part.scores for part in parts):
        return
    here = merged(part.without_truth for part in parts).examples.get(WITHOUT_TRUTH, [])
    there = list(truth.ids())[:N_EXAMPLES]
    raise AnnotationError(
        f"{parts[0].made_from}: none of the {sum(part.documents for part in parts):,} documents of "
        f"{parts[0].annotator} is in {path}: here the ids are {', '.join(here) or 'none'}, there {', '.join(there)}"
    )


def _write(report: EvaluationReport, folder: Path) -> None:
    for comparison in report.comparisons:
        place = folder / comparison.language if comparison.language else folder
        _draw(comparison, place)
        if comparison.language:
            publish_json(place / f"ir_gt_{comparison.annotator}.json", comparison.to_json())
    publish_json(folder / "evaluation.json", report.to_json())
    with publish(folder / "evaluation.md") as temporary, open_new(temporary) as file:
        file.write(report.to_markdown().encode())


def _draw(comparison: Comparison, folder: Path) -> None:
    name, counts = comparison.annotator, comparison.counts
    pictures = (
        (draw_confusion, f"confusion_matrix_{name}_gt.png", counts["valid"] + counts[INVALID]),
        (draw_scores, f"histogram_{name}_scores.png", counts["valid"]),
        (draw_invalid, f"histogram_{name}_invalid_scores.png", counts[INVALID]),
    )
    for draw, file_name, n_documents in pictures:
        if n_documents:
            draw(comparison, folder / file_name)
        else:
            (folder / file_name).unlink(missing_ok=True)  # of an earlier run
