import re

import pytest

from mlfilter_core.errors import AnnotationError, ConfigError
from mlfilter_core.evaluation.draws import MISSING
from mlfilter_core.evaluation.score_fields import ScoredRecord, ScoreFields
from mlfilter_core.tallies.tally import Tally
from tests.conftest import WriteLines

RECORD = {"document_id": 5, "score_a": 1.5, "int_score_a": 2, "label_a": "x", "score_b": None, "scores": {"score": 3}}


@pytest.mark.parametrize(
    ("written", "scores"),
    [
        ("score_*", {"score_a": 1.5, "score_b": None}),
        ("int_*,score_b", {"int_score_a": 2, "score_b": None}),
        (" score_b , score_a,score_a", {"score_b": None, "score_a": 1.5}),
        ("scores.score", {"scores.score": 3}),
        ("score_a,score_c", {"score_a": 1.5, "score_c": MISSING}),
    ],
)
def test_patterns_and_names_pick_fields(write_lines: WriteLines, written: str, scores: dict[str, object]) -> None:
    (row,) = ScoreFields(written).read(write_lines("x.jsonl", [RECORD]), Tally())
    assert isinstance(row, ScoredRecord)
    assert (row.line, row.document_id, row.scores) == (1, "5", scores)


def test_broken_lines_and_lines_without_an_id_keep_their_place(write_lines: WriteLines) -> None:
    path = write_lines("x.jsonl", [b"{", {"score_a": 1}, {"id": "a", "score_a": 1}, {"id": "b"}])
    bad_lines = Tally()
    broken, nameless, first, second = ScoreFields("score_*").read(path, bad_lines)
    assert (broken, nameless) == (None, None)
    places = {reason: example.split(": ")[0] for reason, (example,) in bad_lines.examples.items()}
    assert places == {"not_json": f"{path}:1", "no_id": f"{path}:2"}
    assert isinstance(first, ScoredRecord) and isinstance(second, ScoredRecord)
    assert (first.scores, second.scores) == ({"score_a": 1}, {"score_a": MISSING})


@pytest.mark.parametrize("written", ["score_*", "score_a,score_b"])
def test_a_file_without_such_fields_is_refused_with_those_that_it_has(write_lines: WriteLines, written: str) -> None:
    path = write_lines("x.jsonl", [b"{", {"id": "a", "quality": 1}, {"id": "b", "quality": 1}])
    expected = f'{path}: no field matches --score-keys "{written}"; line 2 has: id, quality'
    with pytest.raises(AnnotationError, match=re.escape(expected)):
        list(ScoreFields(written).read(path, Tally()))


def test_a_field_that_comes_later_is_refused(write_lines: WriteLines) -> None:
    path = write_lines("x.jsonl", [{"id": "a", "score_a": 1}, {"id": "b", "score_a": 1, "score_b": 2}])
    with pytest.raises(
        AnnotationError, match=r"x\.jsonl:2: the score fields are score_a, score_b, but those of earlier lines"
    ):
        list(ScoreFields("score_*").read(path, Tally()))
    assert len(list(ScoreFields("score_a").read(path, Tally()))) == 2


@pytest.mark.parametrize("written", ["", " , "])
def test_no_field_at_all_is_refused(written: str) -> None:
    with pytest.raises(ConfigError, match="names no field"):
        ScoreFields(written)
