import math
import re
from pathlib import Path
from typing import Any

import pytest

from mlfilter_core.errors import AnnotationError, ConfigError
from mlfilter_core.evaluation.scale import Scale
from mlfilter_core.evaluation.truth import read_truth
from tests.conftest import WriteLines
from tests.mlfilter_core.evaluation.conftest import draw_record


@pytest.mark.parametrize(
    ("record", "label_key", "score"),
    [
        (draw_record("a", [2, 3, 3, 9]), None, 3.0),
        ({"id": "a", "label": 4}, None, 4.0),
        ({"uuid": "a", "score": 2.5, "aggregation_type": "mean"}, None, 2.5),
        ({"id": "a", "scores": {"score": 1}, "text": "as FineWeb-Edu's annotations"}, None, 1.0),
        ({"id": "a", "label": 4, "mine": {"x": 0}}, "mine.x", 0.0),
        ({"id": "a", "label": 4, "votes": [1, None, 1]}, "votes", 1.0),
    ],
)
def test_a_label_is_found_where_records_have_it(
    write_lines: WriteLines, scale: Scale, record: dict[str, Any], label_key: str | None, score: float
) -> None:
    truth = read_truth(write_lines("gt.jsonl", [record]), scale, "majority", label_key)
    assert truth.scores == {"a": score}
    assert "a" in truth and "b" not in truth


def test_what_is_no_label_is_kept_apart_and_counted(write_lines: WriteLines, scale: Scale) -> None:
    labels = {"good": 5, "above": 5.5, "below": -1, "none": None, "nan": math.nan, "word": "3", "draws": [7]}
    records = [{"id": name, "label": label} for name, label in labels.items()]
    path = write_lines("gt.jsonl", [*records, {"id": "x"}, {"label": 1}, b"{"])
    truth = read_truth(path, scale, "mean", None)
    assert truth.scores == {"good": 5.0}
    assert truth.invalid == labels.keys() - {"good"}
    assert sorted(truth.ids()) == sorted(labels)
    assert truth.invalid_labels.counts == {
        **{"outside_the_scale": 2, "null": 1, "not_finite": 1, "not_a_number": 1, "not_a_label": 1}
    }
    assert truth.invalid_labels.examples["outside_the_scale"] == [f"{path}:2: 5.5", f"{path}:3: -1"]
    assert truth.bad_lines.counts == {"no_label": 1, "no_id": 1, "not_json": 1}
    assert (
        "none of label, score, scores.score is present; the record has: id" in truth.bad_lines.examples["no_label"][0]
    )


def test_a_folder_is_read_as_a_whole_and_what_repeats_another_record_is_merged(
    write_lines: WriteLines, scale: Scale, tmp_path: Path
) -> None:
    write_lines("gt/a.jsonl", [{"id": 1, "label": 3}, {"id": "2", "label": None}])
    write_lines("gt/b/c.jsonl.gz", [{"id": "1", "label": 3.0}, {"id": "2", "label": 4}, {"id": "3", "label": 0}])
    truth = read_truth(tmp_path / "gt", scale, "mean", None)
    assert truth.scores == {"1": 3.0, "2": 4.0, "3": 0.0}
    assert (truth.n_merged, truth.invalid) == (1, set())
    assert [path.name for path in truth.files] == ["a.jsonl", "c.jsonl.gz"]


def test_labels_that_contradict_each_other_are_an_error_with_examples(write_lines: WriteLines, scale: Scale) -> None:
    labels = [("a", 1), ("b", 2), ("c", 3), ("d", 4), ("b", 2), ("a", 2), ("c", 0.5), ("d", 3), ("a", 3)]
    path = write_lines("gt.jsonl", [{"id": name, "label": label} for name, label in labels])
    expected = (
        f"{path}: 4 records contradict others: a is 1 at {path}:1, 2 at {path}:6; c is 3 at {path}:3, 0.5 at {path}:7; "
        f"d is 4 at {path}:4, 3 at {path}:8; keep one of each"
    )
    with pytest.raises(AnnotationError, match=re.escape(expected)):
        read_truth(path, scale, "mean", None)


def test_a_truth_without_a_valid_label_is_an_error_with_the_reasons(write_lines: WriteLines, scale: Scale) -> None:
    path = write_lines("gt.jsonl", [{"id": "a", "label": 7}, {"id": "b"}])
    with pytest.raises(
        AnnotationError, match=r"no document has a valid label: 1 outside_the_scale \(.*:1: 7\); 1 no_label"
    ):
        read_truth(path, scale, "mean", None)
    with pytest.raises(AnnotationError, match="no document has a valid label: it is empty; check --label-key"):
        read_truth(write_lines("empty.jsonl", []), scale, "mean", None)


def test_a_folder_without_files_is_refused(tmp_path: Path, scale: Scale) -> None:
    with pytest.raises(ConfigError, match=r"--path-to-ground-truth-file: there is no \.jsonl"):
        read_truth(tmp_path, scale, "mean", None)


def test_documents_that_do_not_state_another_language_may_be_in_one(write_lines: WriteLines, scale: Scale) -> None:
    languages = {"a": "de", "b": "fr/CH", "c": None}
    records = [{"id": name, "label": 1, "language": language} for name, language in languages.items()]
    truth = read_truth(write_lines("gt.jsonl", records), scale, "mean", None)
    assert truth.ids_in("de") == ["a", "c"]
    assert truth.ids_in("fr__CH") == ["b", "c"]
    stated = read_truth(write_lines("stated.jsonl", records[:2]), scale, "mean", None)
    assert stated.ids_in("deu_Latn") == ["a", "b"]  # other names of languages do not matter
