import math
import re
from pathlib import Path

import pytest

from mlfilter_core.errors import AnnotationError, ConfigError
from mlfilter_core.evaluation.draws import Scoring
from mlfilter_core.evaluation.predictions import Predictions, read_annotators, read_heads
from mlfilter_core.evaluation.scale import Scale
from mlfilter_core.evaluation.score_fields import ScoreFields
from mlfilter_core.evaluation.truth import Truth
from mlfilter_core.tallies.tally import Tally
from tests.conftest import WriteLines
from tests.mlfilter_core.evaluation.conftest import draw_record

TRUTH = Truth([Path("gt.jsonl")], scores={"a": 1.0, "b": 2.0, "c": 3.0}, invalid={"d"})


def names(predictions: list[Predictions]) -> list[tuple[str, str]]:
    return [(part.annotator, part.language) for part in predictions]


def test_a_file_is_an_annotator_in_the_language_of_its_folder(
    write_lines: WriteLines, tmp_path: Path, scale: Scale
) -> None:
    records = [draw_record("a", [1, 1, 4], model="org/m"), draw_record("x", [2], model="org/m"), b"{"]
    write_lines("in/de/annotations_m.jsonl", [*records, draw_record("b", [None, 9], model="org/m")])
    write_lines("in/fr/7__annotations_other.jsonl", [{"id": "d", "scores": [5]}])
    bad_lines = Tally()
    german, french = read_annotators(tmp_path / "in", TRUTH, Scoring("mean", scale), bad_lines)
    assert names([german, french]) == [("org__m", "de"), ("other", "fr")]
    assert german.scores == {"a": 2.0, "b": None}
    assert (german.documents, german.without_truth.examples) == (3, {"predicted_without_truth": ["x"]})
    assert german.invalid_draws.counts == {"null": 1, "not_a_label": 1}
    assert french.scores == {"d": 5.0}
    assert bad_lines.counts == {"not_json": 1}


def test_of_a_document_scored_twice_the_last_counts_and_it_is_said(
    write_lines: WriteLines, tmp_path: Path, scale: Scale
) -> None:
    draws = [("a", [1]), ("b", [2]), ("a", [1, 1]), ("b", [5])]
    write_lines("in/de/annotations_m.jsonl", [draw_record(name, scores) for name, scores in draws])
    (part,) = read_annotators(tmp_path / "in", TRUTH, Scoring("mean", scale), Tally())
    assert part.scores == {"a": 1.0, "b": 5.0}
    assert part.duplicates.examples == {"with_same_score": ["a"], "with_other_score": ["b"]}


def test_the_truth_among_the_draw_files_is_no_annotator(write_lines: WriteLines, tmp_path: Path, scale: Scale) -> None:
    truth = Truth([write_lines("in/en/annotations__edu__gt.jsonl", [draw_record("a", [1])])], scores={"a": 1.0})
    with pytest.raises(ConfigError, match=r"the only draw files below .* are the ground truth"):
        read_annotators(tmp_path / "in", truth, Scoring("mean", scale), Tally())
    write_lines("in/en/annotations_m.jsonl", [draw_record("a", [1])])
    assert len(read_annotators(tmp_path / "in", truth, Scoring("mean", scale), Tally())) == 1


def test_two_annotators_of_one_name_in_a_language_are_refused_with_both_files(
    write_lines: WriteLines, tmp_path: Path, scale: Scale
) -> None:
    one = write_lines("in/1/de/annotations_1.jsonl", [draw_record("a", [1], model="org/m")])
    two = write_lines("in/2/de/annotations_2.jsonl", [draw_record("a", [1], model="org__m")])
    expected = f"two annotators in de are named org__m, in {one} and {two}; rename one"
    with pytest.raises(AnnotationError, match=re.escape(expected)):
        read_annotators(tmp_path / "in", TRUTH, Scoring("mean", scale), Tally())


@pytest.mark.parametrize("model", ["n" * 201, "a\0b"])
def test_a_model_whose_name_no_file_can_have_is_refused(
    write_lines: WriteLines, tmp_path: Path, scale: Scale, model: str
) -> None:
    records = [draw_record("a", [1], model=model)]
    path = write_lines("in/de/annotations_m.jsonl", records)
    if "\0" in model:  # not a string that could be the name of a model
        assert names(read_annotators(tmp_path / "in", TRUTH, Scoring("mean", scale), Tally())) == [("m", "de")]
        return
    with pytest.raises(AnnotationError, match=rf'{path}: the annotator "n{{200}}" cannot be a file name'):
        read_annotators(tmp_path / "in", TRUTH, Scoring("mean", scale), Tally())


def test_each_score_field_is_an_annotator_in_the_language_of_the_record_or_the_folder(
    write_lines: WriteLines, tmp_path: Path
) -> None:
    records = [
        {"id": "a", "language": "fr", "score_x": 0.5, "score_y": 2},
        {"id": "b", "language": "", "score_x": -7.25, "score_y": math.nan},
        {"id": "unknown", "language": 3, "score_x": 1, "score_y": 1},
        {"score_x": 1},
    ]
    write_lines("in/de/x.jsonl.gz", records)
    write_lines("in/de/y.jsonl", [{"id": "c", "score_x": 1}])
    bad_lines = Tally()
    found = read_heads(tmp_path / "in", TRUTH, ScoreFields("score_*"), bad_lines)
    assert {name: part.scores for name, part in zip(names(found), found, strict=True)} == {
        ("score_x", "fr"): {"a": 0.5},
        ("score_y", "fr"): {"a": 2.0},
        ("score_x", "de"): {"b": -7.25, "c": 1.0},
        ("score_y", "de"): {"b": None},
    }
    assert [part.without_truth.total for part in found] == [0, 0, 1, 1]
    assert bad_lines.counts == {"no_id": 1}


@pytest.mark.parametrize("language", ["..", ".", "a\0b", "l" * 201])
def test_a_language_that_no_folder_can_be_named_by_is_refused(
    write_lines: WriteLines, tmp_path: Path, language: str
) -> None:
    write_lines("in/x.jsonl", [{"id": "a", "language": language, "score_x": 1}])
    with pytest.raises(AnnotationError, match=r"x\.jsonl: the language \".*\" cannot be a file name; rename it"):
        read_heads(tmp_path / "in", TRUTH, ScoreFields("score_*"), Tally())


def test_languages_that_would_share_a_folder_are_refused(write_lines: WriteLines, tmp_path: Path) -> None:
    for name, language in (("x", "a/b"), ("y", "a__b")):
        write_lines(f"in/{name}.jsonl", [{"id": "a", "language": language, "score_x": 1}])
    with pytest.raises(
        AnnotationError, match=r"two annotators in a__b are named score_x, in .*x\.jsonl and .*y\.jsonl"
    ):
        read_heads(tmp_path / "in", TRUTH, ScoreFields("score_*"), Tally())


def test_a_folder_without_annotated_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--input-directory: there is no \.jsonl"):
        read_heads(tmp_path, TRUTH, ScoreFields("score_*"), Tally())


def test_the_language_of_files_in_the_folder_itself_is_the_folder_s_name(
    write_lines: WriteLines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_lines("in/sv/x.jsonl", [{"id": "a", "score_x": 1}])
    (tmp_path / "in" / "sv" / "below").mkdir()
    for folder, given in (("in/sv", "."), ("in/sv/below", ".."), (".", "in/sv")):
        monkeypatch.chdir(tmp_path / folder)
        assert names(read_heads(Path(given), TRUTH, ScoreFields("score_*"), Tally())) == [("score_x", "sv")]
