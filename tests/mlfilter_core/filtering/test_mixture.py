from collections import defaultdict
from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np
import pytest

from mlfilter_core.config.filtering import Selection
from mlfilter_core.errors import ConfigError
from mlfilter_core.filtering.mixture import notes_on, shares_of
from mlfilter_core.filtering.preview import preview
from mlfilter_core.filtering.ranks import ranks
from mlfilter_core.filtering.survey import Survey
from mlfilter_core.filtering.thresholds import find_thresholds
from tests.mlfilter_core.filtering.conftest import survey_of

GROUPS = ("", "-1", "3", "17", "de", "en")


def mixed(total: int, weights: Mapping[str, float], **other: object) -> Selection:
    keep = {"scores": {"q": {"best_tokens": total}}, "per": "cluster", "weights": weights}
    return Selection.model_validate({**keep, **other})


def random_corpus(seed: int) -> list[Survey]:
    """Returns files with ties, documents without a score or tokens, and groups that not every file has."""
    rng = np.random.default_rng(seed)
    surveys = []
    for i in range(int(rng.integers(1, 5))):
        n = int(rng.integers(1, 60))
        scores = rng.integers(-3, 3, n) / 2
        scores[rng.random(n) < 0.1] = np.nan
        own = GROUPS[: int(rng.integers(1, len(GROUPS) + 1))]
        groups = ["-1", *(own[code] for code in rng.integers(0, len(own), n - 1))]
        surveys.append(survey_of(scores.tolist(), rng.integers(0, 40, n).tolist(), groups, stem=str(i)))
    return surveys


def kept_by_sorting(surveys: Sequence[Survey], total: int, weights: Mapping[str, float]) -> set[tuple[str, int]]:
    """Returns file and row of each document that is kept."""
    of_groups: defaultdict[str, list[tuple[int, int, tuple[str, int]]]] = defaultdict(list)
    for survey in surveys:
        columns = (survey.group.tolist(), ranks(survey, "q").tolist(), survey.tokens.tolist())
        for row, (code, rank, tokens) in enumerate(zip(*columns, strict=True)):
            if rank:
                of_groups[survey.groups[code]].append((rank, tokens, (survey.stem, row)))
    kept = set()
    for group, weight in weights.items():
        left = Fraction(total) * Fraction(str(weight)) / sum(Fraction(str(each)) for each in weights.values())
        if left < 1:
            continue
        for _, tokens, document in sorted(of_groups[group], reverse=True):
            left -= tokens
            if left < 0:
                break
            kept.add(document)
    return kept


@pytest.mark.parametrize("seed", range(60))
def test_each_group_keeps_the_best_documents_that_fit_into_its_share(seed: int) -> None:
    surveys, rng = random_corpus(seed), np.random.default_rng(seed + 1000)
    weights = {group: float(rng.choice([0, 0.1, 0.7, 2, 1e-6])) for group in GROUPS if rng.random() < 0.8}
    weights |= {"-1": 0.3, "99": float(rng.choice([0, 1]))}  # of a group of each file, and of one of none
    total = int(rng.integers(1, 1500))
    selection = mixed(total, weights)
    thresholds = find_thresholds(selection, lambda: surveys)
    kept = {(survey.stem, row) for survey in surveys for row in np.flatnonzero(thresholds.kept(survey)).tolist()}
    assert kept == kept_by_sorting(surveys, total, weights)
    assert find_thresholds(selection, lambda: surveys[::-1]) == thresholds


def test_shares_are_fractions_of_the_decimals_that_were_written() -> None:
    assert shares_of(100, {"a": 2.0, "b": 0.5, "c": 0.5}) == {"a": 66, "b": 16, "c": 16}
    # In floats, these weights sum up to less than 1, and the share of the last is 6.
    assert shares_of(10, {"a": 0.1, "b": 0.2, "c": 0.7}) == {"a": 1, "b": 2, "c": 7}
    assert shares_of(2**62, {"a": 1.0, "b": 0.0}) == {"a": 2**62, "b": 0}
    assert shares_of(9, {"a": 1e300, "b": 1e-300}) == {"a": 8, "b": 0}


def test_a_group_without_tokens_to_share_keeps_nothing_not_even_empty_documents() -> None:
    survey = survey_of([3, 2, 1, 3], [0, 5, 5, 0], ["a", "a", "a", "b"])
    thresholds = find_thresholds(mixed(5, {"a": 1, "b": 0}), lambda: [survey])
    assert thresholds.kept(survey).tolist() == [True, True, False, False]
    assert thresholds.of_scores[0].describe() == (
        "q: best 5 tokens by weights of 4 documents, which is a: above 1, and as many of 1 as fit, b: nothing"
    )


def test_other_limits_of_the_same_selection_apply_too() -> None:
    survey = survey_of({"q": [3, 2, 1], "r": [1, 5, 5]}, [5, 5, 5], ["a", "a", "a"])
    scores = {"q": {"best_tokens": 10}, "r": {"threshold": 5}}
    thresholds = find_thresholds(mixed(10, {"a": 1}, scores=scores), lambda: [survey])
    assert thresholds.kept(survey).tolist() == [False, True, False]
    assert [bool(each.shares) for each in thresholds.of_scores] == [True, False]


def test_groups_that_fall_short_or_have_no_weight_or_no_document_are_named() -> None:
    survey = survey_of([1] * 7, [10] * 7, ["3", "3", "-1", "5", "6", "6", ""])
    selection = mixed(100, {"3": 3, "-1": 5, "99": 1, "": 1})
    thresholds = find_thresholds(selection, lambda: [survey])
    assert thresholds.notes == (
        "q: 2 groups with fewer tokens than the share, kept whole, 50 tokens short in all: -1 (10 of 50), 3 (20 of 30)",
        "q: 1 group with a weight but no document, 10 tokens short in all: 99 (0 of 10)",
        "q: 2 groups without a weight, no tokens for 3 documents: 6 (2 documents), 5 (1 document)",
    )
    assert thresholds.of_scores[0].shares == {"": 10, "-1": 50, "3": 30, "5": 0, "6": 0}
    (shown,) = preview(selection, [], lambda: [survey])
    assert (shown.notes, shown.bounds, shown.counts.kept_tokens) == (thresholds.notes, "best 100 tokens by weights", 40)


def test_only_the_groups_that_fall_shortest_are_named() -> None:
    (note,) = notes_on(dict.fromkeys(map(str, range(30)), 100), {str(i): i for i in range(30)}, {})
    assert note.startswith("30 groups with fewer tokens than the share, kept whole, 2,565 tokens short in all: 0 (0 of")
    assert note.endswith("19 (19 of 100), and 10 more")


def test_weights_of_other_groups_than_the_corpus_has_are_refused() -> None:
    message = (
        "params.keep.weights: no document is in a group with a weight above 0; the weights are of de, fr, and the "
        "documents have the \"cluster\" '', de, en"
    )
    survey = survey_of([1, 1, 1], groups=["de", "en", ""])
    with pytest.raises(ConfigError, match=message):
        find_thresholds(mixed(10, {"fr": 1, "de": 0}), lambda: [survey])
