"""The evaluation of all annotators below a folder, in every language, against the truth."""

import logging
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from mlfilter_core.errors import AnnotationError
from mlfilter_core.evaluation.annotator_result import INVALID, AnnotatorResult, annotator_result
from mlfilter_core.evaluation.draws import Scoring
from mlfilter_core.evaluation.evaluation_figures import draw_confusion, draw_invalid, draw_scores
from mlfilter_core.evaluation.evaluation_report import EvaluationReport, EvaluationRequest
from mlfilter_core.evaluation.predictions import WITHOUT_TRUTH, Predictions, read_annotators, read_heads
from mlfilter_core.evaluation.truth import Truth, read_truth
from mlfilter_core.files.new_file import open_new
from mlfilter_core.files.publishing import check_writable, publish, publish_json
from mlfilter_core.tallies.tally import N_EXAMPLES, Tally, merged

_log = logging.getLogger(__name__)


def evaluate(request: EvaluationRequest) -> EvaluationReport:
    """Compares every annotator with the truth, in each language and in all together, and writes the results.

    The output folder receives `<language>/ir_gt_<annotator>.json` with figures beside it, figures for all languages
    together, `evaluation.json` and `evaluation.md`.

    Raises:
        ConfigError: There are no files, or the output folder is not writable.
        SourceError: A file is not readable.
        AnnotationError: The truth contradicts itself or has no valid label, two annotators share a name, or an
            annotator scores no document of the truth.
        OSError: Reading or writing failed.
    """
    check_writable(request.output_directory, "--output-directory")
    truth = read_truth(request.truth, request.options.scale, request.aggregation, request.label_key)
    bad_lines = Tally()
    results = []
    for parts in _parts_by_annotator(request, truth, bad_lines):
        _check_matched(parts, truth, request.truth)
        results += [annotator_result([part], truth, request.options) for part in parts]
        if len(parts) > 1:
            results.append(annotator_result(parts, truth, request.options))
        _log.info("%s: evaluated in %d languages", parts[0].annotator, len(parts))
    report = EvaluationReport(request, truth, bad_lines, results)
    _write(report, request.output_directory)
    return report


def _parts_by_annotator(request: EvaluationRequest, truth: Truth, bad_lines: Tally) -> list[list[Predictions]]:
    if request.score_fields is None:
        scoring = Scoring(request.aggregation, request.options.scale)
        predictions = read_annotators(request.input_directory, truth, scoring, bad_lines)
    else:
        predictions = read_heads(request.input_directory, truth, request.score_fields, bad_lines)
    if not predictions:
        raise AnnotationError(
            f"{request.input_directory}: no line is a record with an id: {bad_lines or 'all files are empty'}"
        )
    predictions.sort(key=lambda part: (part.annotator, part.language))
    return [list(parts) for _, parts in groupby(predictions, lambda part: part.annotator)]


def _check_matched(parts: Sequence[Predictions], truth: Truth, path: Path) -> None:
    if any(part.scores for part in parts):
        return
    here = merged(part.without_truth for part in parts).examples.get(WITHOUT_TRUTH, [])
    there = list(truth.ids())[:N_EXAMPLES]
    raise AnnotationError(
        f"{parts[0].source}: none of the {sum(part.documents for part in parts):,} documents of "
        f"{parts[0].annotator} is in {path}: here the ids are {', '.join(here) or 'none'}, there {', '.join(there)}"
    )


def _write(report: EvaluationReport, folder: Path) -> None:
    for result in report.results:
        place = folder / result.language if result.language else folder
        _draw(result, place)
        if result.language:
            publish_json(place / f"ir_gt_{result.annotator}.json", result.to_json())
    publish_json(folder / "evaluation.json", report.to_json())
    with publish(folder / "evaluation.md") as temporary, open_new(temporary) as file:
        file.write(report.to_markdown().encode())


def _draw(result: AnnotatorResult, folder: Path) -> None:
    name, counts = result.annotator, result.counts
    figures = (
        (draw_confusion, f"confusion_matrix_{name}_gt.png", counts["valid"] + counts[INVALID]),
        (draw_scores, f"histogram_{name}_scores.png", counts["valid"]),
        (draw_invalid, f"histogram_{name}_invalid_scores.png", counts[INVALID]),
    )
    for draw, file_name, n_documents in figures:
        if n_documents:
            draw(result, folder / file_name)
        else:
            (folder / file_name).unlink(missing_ok=True)  # from an earlier run
