import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlfilter_core.errors import AnnotationError, ConfigError
from mlfilter_core.evaluation.agreement import MeasureOptions
from mlfilter_core.evaluation.evaluate import evaluate
from mlfilter_core.evaluation.evaluation_report import EvaluationRequest
from mlfilter_core.evaluation.scale import Scale
from mlfilter_core.evaluation.score_fields import ScoreFields
from tests.conftest import WriteLines
from tests.mlfilter_core.evaluation.conftest import draw_record

LABELS = {"a": 0, "b": 1, "c": 2, "d": 3, "e": 4, "f": 5}
WriteAnnotator = Callable[..., Path]


@pytest.fixture
def truth(write_lines: WriteLines) -> Path:
    return write_lines("gt.jsonl", [draw_record(name, [label] * 3) for name, label in LABELS.items()])


@pytest.fixture
def annotator(write_lines: WriteLines) -> WriteAnnotator:
    """Writes a draw file of the documents of the truth; keywords replace draws."""

    def write(language: str, model: str, **draws: list[Any]) -> Path:
        records = [draw_record(name, draws.get(name, [label]), model=model) for name, label in LABELS.items()]
        return write_lines(f"in/{language}/annotations_edu_{model.replace('/', '--')}.jsonl", records)

    return write


def evaluation(folder: Path, truth: Path, scale: Scale, **changes: Any) -> EvaluationRequest:
    return EvaluationRequest(
        folder / "in", folder / "out", truth, "majority", MeasureOptions(scale, (3.0,), 50), **changes
    )


def test_each_annotator_and_language_and_all_together_are_written_as_users_know_them(
    annotator: WriteAnnotator, truth: Path, scale: Scale, tmp_path: Path
) -> None:
    annotator("de", "org/m", a=[1, 1, 0], f=[None, 9])
    annotator("fr", "org/m", b=[2])
    annotator("fr", "gemma")
    report = evaluate(evaluation(tmp_path, truth, scale))
    assert [(part.annotator, part.language) for part in report.results] == [
        *(("gemma", "fr"), ("org__m", "de"), ("org__m", "fr"), ("org__m", None)),
    ]
    files = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*"))
    assert files == [
        "confusion_matrix_org__m_gt.png",
        "de/confusion_matrix_org__m_gt.png",
        "de/histogram_org__m_invalid_scores.png",
        "de/histogram_org__m_scores.png",
        "de/ir_gt_org__m.json",
        "evaluation.json",
        "evaluation.md",
        "fr/confusion_matrix_gemma_gt.png",
        "fr/confusion_matrix_org__m_gt.png",
        "fr/histogram_gemma_scores.png",
        "fr/histogram_org__m_scores.png",
        "fr/ir_gt_gemma.json",
        "fr/ir_gt_org__m.json",
        "histogram_org__m_invalid_scores.png",
        "histogram_org__m_scores.png",
    ]
    german = json.loads((tmp_path / "out/de/ir_gt_org__m.json").read_text())
    assert german["metrics"]["Invalid"] == 1
    assert german["metrics"]["Acc"] == pytest.approx(4 / 5)
    assert german["metrics"]["CA-5"] is None
    assert german["undefined"]["CA-5"] == "no document has the true label 5"
    assert german["CM"]["5"] == {"-1": 1, "0": 0, "1": 0, "2": 0, "3": 0, "4": 0, "5": 0}
    assert german["intervals"]["Acc"]["low"] <= 4 / 5 <= german["intervals"]["Acc"]["high"]
    known = {"Fleiss", "Cohen", "Spearman", "Kendall", "Krippendorff", "Invalid", "TA-3.0", "Acc", "MAE", "MSE"}
    known |= {"Macro-F1", "Micro-F1", *(f"{name}-{label}" for name in ("CA", "F1") for label in range(6))}
    assert known <= german["metrics"].keys()
    written = json.loads((tmp_path / "out/evaluation.json").read_text())
    assert written["comparisons"] == [part.to_json() for part in report.results]
    assert written["comparisons"][1] == german
    assert written["request"]["valid_labels"] == [0, 1, 2, 3, 4, 5]


def test_the_page_has_every_measure_of_every_row(
    annotator: WriteAnnotator, truth: Path, scale: Scale, tmp_path: Path
) -> None:
    annotator("de", "a|b", a=[1])
    annotator("fr", "a|b", f=[7])
    report = evaluate(evaluation(tmp_path, truth, scale))
    page = (tmp_path / "out/evaluation.md").read_text()
    measures = {
        name for table in re.findall(r"\| annotator \| language \|(.*)\|\n", page) for name in table.split(" | ")
    }
    assert {name.strip() for name in measures} > report.results[0].agreement.values.keys()
    rows = [line for line in page.splitlines() if line.startswith("| a\\|b | de | ")]
    assert [row.split(" | ")[2] for row in rows] == [
        "6",
        "0.833 [0.667, 1.000]",
        "1.000 [1.000, 1.000]",
        "0.000 [0.000, 0.000]",
    ]
    assert "- a|b, fr: invalid draws: 1 not_a_label (" in page


def test_score_fields_of_annotated_files_are_annotators(write_lines: WriteLines, scale: Scale, tmp_path: Path) -> None:
    truth = write_lines("gt.jsonl", [{"id": name, "text": "", "quality": label} for name, label in LABELS.items()])
    records = [
        {"document_id": name, "language": "en", "score_x": label + 0.75, "int_score_x": label, "score_y": 1.5}
        for name, label in LABELS.items()
    ]
    write_lines("in/x.jsonl.zst", [*records, {"document_id": "unknown", "score_x": 1, "int_score_x": 1, "score_y": 0}])
    request = evaluation(tmp_path, truth, scale, score_fields=ScoreFields("*score_*"), label_key="quality")
    found = {(part.annotator, part.language): part for part in evaluate(request).results}
    heads = ("int_score_x", "score_x", "score_y")
    assert list(found) == [(head, language) for head in heads for language in ("en", "in", None)]
    assert found["int_score_x", "en"].agreement.values["Acc"] == 1
    assert found["score_x", "en"].agreement.values["MAE"] == 0.75
    assert found["score_x", "en"].counts["beyond_scale"] == 1
    assert found["score_x", "in"].counts["matched"] == 0  # reported, not an error: the truth may lack a language
    assert found["score_y", "en"].agreement.undefined["Spearman"] == "all predicted scores are 1.5"
    assert not list((tmp_path / "out" / "in").glob("*.png"))
    assert json.loads((tmp_path / "out/in/ir_gt_score_x.json").read_text())["metrics"]["MAE"] is None


def test_an_annotator_that_scores_no_document_of_the_truth_is_an_error_with_ids_of_both_sides(
    annotator: WriteAnnotator, write_lines: WriteLines, truth: Path, scale: Scale, tmp_path: Path
) -> None:
    annotator("de", "good")
    path = write_lines("in/de/annotations_x.jsonl", [draw_record(f"<urn:{i}>", [1], model="bad") for i in range(9)])
    ids = "here the ids are <urn:0>, <urn:1>, <urn:2>, there a, b, c"
    expected = f"{path}: none of the 9 documents of bad is in {truth}: {ids}"
    with pytest.raises(AnnotationError, match=re.escape(expected)):
        evaluate(evaluation(tmp_path, truth, scale))
    assert list((tmp_path / "out").iterdir()) == []


def test_files_without_a_record_are_an_error(
    write_lines: WriteLines, truth: Path, scale: Scale, tmp_path: Path
) -> None:
    write_lines("in/x.jsonl", [b"{", {"score_x": 1}])
    request = evaluation(tmp_path, truth, scale, score_fields=ScoreFields("score_*"))
    with pytest.raises(AnnotationError, match=r"in: no line is a record with an id: 1 not_json \(.*\); 1 no_id \("):
        evaluate(request)
    write_lines("in/x.jsonl", [])
    with pytest.raises(AnnotationError, match="no line is a record with an id: all files are empty"):
        evaluate(request)


def test_a_figure_of_an_earlier_run_does_not_outlive_its_reason(
    annotator: WriteAnnotator, truth: Path, scale: Scale, tmp_path: Path
) -> None:
    annotator("de", "m", a=[9])
    evaluate(evaluation(tmp_path, truth, scale))
    figure = tmp_path / "out/de/histogram_m_invalid_scores.png"
    assert figure.exists()
    annotator("de", "m")
    evaluate(evaluation(tmp_path, truth, scale))
    assert not figure.exists()


def test_an_output_folder_that_cannot_be_made_is_named_before_anything_is_read(
    truth: Path, scale: Scale, tmp_path: Path
) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(ConfigError, match=r"--output-directory: .*/out cannot be written to"):
        evaluate(evaluation(tmp_path, truth, scale))
