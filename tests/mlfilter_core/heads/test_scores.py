from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from mlfilter_core.config.annotation import Ensemble, Scoring
from mlfilter_core.errors import HeadError
from mlfilter_core.heads.head import Head
from mlfilter_core.heads.layers import mlp
from mlfilter_core.heads.scores import ScoreColumns


def head(name: str, n_outputs: int = 1, task: str = "regression", labels: tuple[str, ...] = ()) -> Head:
    return Head(name, mlp([torch.ones(n_outputs, 3)], [torch.zeros(n_outputs)], "relu"), {}, task, labels)


def columns(heads: list[Head], outputs: list[list[float]], **asked: Any) -> dict[str, list[Any]]:
    table = ScoreColumns(heads, asked.pop("prefix", "score_"), asked.pop("ensembles", {}), asked.pop("scales", {}))
    values = table.table(np.array(outputs, np.float32))
    assert tuple(values) == table.names
    return {name: list(np.asarray(column).tolist()) for name, column in values.items()}


def test_a_regression_writes_its_outputs_as_they_are() -> None:
    assert columns([head("edu")], [[1.5], [-2.0]]) == {"score_edu": [1.5, -2.0]}


def test_several_targets_have_their_names_or_their_numbers() -> None:
    heads = [head("a", 2), head("b", 2, labels=("depth", "style"))]
    written = columns(heads, [[1, 2, 3, 4]], prefix="s_")
    assert written == {"s_a_0": [1], "s_a_1": [2], "s_b_depth": [3], "s_b_style": [4]}


def test_a_binary_classifier_writes_the_probability_of_its_second_class_and_the_likelier_one() -> None:
    written = columns([head("toxic", 1, "binary", ("fine", "toxic"))], [[0.0], [np.log(3)], [-np.log(3)]])
    assert written["score_toxic"] == pytest.approx([0.5, 0.75, 0.25])
    assert written["label_toxic"] == ["toxic", "toxic", "fine"]


def test_a_binary_classifier_of_two_outputs_is_the_softmax_of_both() -> None:
    written = columns([head("toxic", 2, "binary", ("fine", "toxic"))], [[1.0, 1.0 + np.log(3)], [0.0, 0.0]])
    assert written["score_toxic"] == pytest.approx([0.75, 0.5])


def test_a_classifier_writes_the_probability_of_each_class_and_the_likeliest() -> None:
    written = columns([head("kind", 3, "multiclass", ("news", "shop", "wiki"))], [[0, np.log(2), 0], [3, 3, 3]])
    assert written["score_kind_news"] == pytest.approx([0.25, 1 / 3])
    assert written["score_kind_shop"] == pytest.approx([0.5, 1 / 3])
    assert written["score_kind_wiki"] == pytest.approx([0.25, 1 / 3])
    assert written["label_kind"] == ["shop", "news"]


def test_a_head_of_several_labels_writes_a_probability_for_each_and_the_list_of_those_it_has() -> None:
    columns = ScoreColumns([head("tags", 3, "multilabel", ("news", "spam", "wiki"))], "score_", {}, {})
    outputs = [[0, np.log(3), -np.log(3)], [-1, -1, -1], [1, 1, 1]]
    table = columns.table(np.array(outputs, np.float32))
    assert tuple(table) == columns.names == ("score_tags_news", "score_tags_spam", "score_tags_wiki", "label_tags")
    assert [column[0] for column in list(table.values())[:3]] == pytest.approx([0.5, 0.75, 0.25])
    assert table["label_tags"] == [["news", "spam"], [], ["news", "spam", "wiki"]]
    assert columns.table(np.empty((0, 3), np.float32))["label_tags"] == []


@pytest.mark.parametrize("size", [1e4, 3e38])
def test_probabilities_of_extreme_logits_are_zero_and_one(size: float) -> None:
    heads = [head("a", 1, "binary", ("n", "y")), head("b", 3, "multiclass", ("0", "1", "2"))]
    written = columns(heads, [[-size, -size, size, -size], [size, size, size, -size]])
    assert written["score_a"] == [0, 1]
    assert written["score_b_1"] == [1, 0.5]


def test_a_scale_rounds_and_cuts_as_fineweb_edu_does() -> None:
    scores = [-0.7, 0.5, 1.5, 2.4999, 2.5, 4.6, 7.0]
    written = columns([head("edu")], [[score] for score in scores], scales={"edu": (0, 5)})
    assert list(written) == ["score_edu", "int_score_edu"]
    assert written["int_score_edu"] == [round(max(0, min(score, 5))) for score in scores]


@pytest.mark.parametrize(
    ("ensemble", "expected"),
    [
        ({"combine": "mean"}, [3.0, 2.0]),
        ({"combine": "median"}, [2.0, 2.0]),
        ({"combine": "min"}, [1.0, 1.0]),
        ({"combine": "max"}, [6.0, 3.0]),
        ({"combine": "weighted", "weights": {"a": 2, "b": 1, "c": 1}}, [2.5, 2.25]),
        ({"combine": "agreement", "thresholds": {"a": 1, "b": 2, "c": 4}, "at_least": 2}, [3.0, 1.0]),
    ],
)
def test_an_ensemble_makes_one_score_of_several(ensemble: dict[str, Any], expected: list[float]) -> None:
    members = [head("a"), head("b"), head("c")]
    asked = {"jql": Ensemble(heads=("a", "b", "c"), **ensemble)}
    written = columns(members, [[1, 2, 6], [3, 1, 2]], ensembles=asked)
    assert written["score_jql"] == expected
    assert written.get("label_jql") == ([True, False] if ensemble["combine"] == "agreement" else None)


def test_scores_agree_by_default_where_all_reach_their_thresholds() -> None:
    asked = {"both": Ensemble(heads=("a", "b"), combine="agreement", thresholds={"a": 1, "b": 1})}
    written = columns([head("a"), head("b")], [[1, 1], [1, 0.999]], ensembles=asked)
    assert written["label_both"] == [True, False]


def test_an_ensemble_may_take_one_target_a_probability_and_an_ensemble_before_it() -> None:
    heads = [head("a", 2), head("b", 1, "binary", ("n", "y"))]
    asked = {"one": Ensemble(heads=("a_1", "b")), "two": Ensemble(heads=("one", "a_0"), combine="max")}
    written = columns(heads, [[7, 1, 0]], ensembles=asked, scales={"one": (0, 1), "two": (0, 5)})
    assert (written["score_one"], written["score_two"]) == ([0.75], [7])
    assert (written["int_score_one"], written["int_score_two"]) == ([1], [5])


def test_scores_are_float32_whatever_they_are_made_of() -> None:
    asked = {"mean": Ensemble(heads=("a", "b"))}
    table = ScoreColumns([head("a"), head("b")], "score_", asked, {}).table(np.full((2, 2), 0.1, np.float32))
    for column in table.values():
        values: NDArray[Any] = np.asarray(column)
        assert values.dtype == np.float32


def test_two_columns_of_one_name_are_refused() -> None:
    with pytest.raises(HeadError, match="two columns would both be named score_a_0; rename one of the heads or"):
        ScoreColumns([head("a", 2), head("a_0")], "score_", {}, {})
    with pytest.raises(HeadError, match="two columns would both be named score_a;"):
        ScoreColumns([head("a"), head("b")], "score_", {"a": Ensemble(heads=("a", "b"))}, {})
    with pytest.raises(HeadError, match="two columns would both be named label_x"):
        ScoreColumns([head("x", 1, "binary", ("n", "y")), head("label_x")], "", {}, {})


def test_a_score_that_there_is_not_is_refused() -> None:
    with pytest.raises(HeadError, match=r"the ensemble e names c, which is not a score; known: a, b$"):
        ScoreColumns([head("a"), head("b")], "score_", {"e": Ensemble(heads=("a", "c"))}, {})
    with pytest.raises(HeadError, match=r"integer_scales names c, which is not a score; known: a$"):
        ScoreColumns([head("a")], "score_", {}, {"c": (0, 5)})


@pytest.mark.parametrize(
    ("ensemble", "message"),
    [
        ({"heads": ["a"]}, "at least 2 items"),
        ({"heads": ["a", "a"]}, "a score is named twice"),
        ({"heads": ["a", "b"], "combine": "weighted"}, "combine: weighted needs weights of a, b, and of no others"),
        ({"heads": ["a", "b"], "combine": "agreement", "thresholds": {"a": 1}}, "needs thresholds of a, b"),
        ({"heads": ["a", "b"], "thresholds": {"a": 1, "b": 1}}, "thresholds go with combine: agreement"),
        ({"heads": ["a", "b"], "at_least": 1}, "at_least goes with combine: agreement, and is 2 at most"),
        ({"heads": ["a", "b"], "combine": "weighted", "weights": {"a": 0, "b": 1}}, "greater than 0"),
    ],
)
def test_an_ensemble_that_makes_no_sense_is_refused(ensemble: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Scoring(regression_head_checkpoints={"a": "a.pt"}, ensembles={"e": ensemble})  # type: ignore[dict-item]


def test_an_empty_scale_is_refused() -> None:
    with pytest.raises(ValidationError, match="edu: the scale from 5 to 0 is empty; write the lower first"):
        Scoring(regression_head_checkpoints={"edu": "a.pt"}, integer_scales={"edu": (5, 0)})
