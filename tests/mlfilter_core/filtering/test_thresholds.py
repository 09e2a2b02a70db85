import math
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlfilter_core.config.filtering import Bound, Selection
from mlfilter_core.errors import ConfigError
from mlfilter_core.filtering import rank_search
from mlfilter_core.filtering.ranks import ABOVE_ALL, LOWEST, TIE_BITS, lowest_rank_of, ranks
from mlfilter_core.filtering.survey import Survey
from mlfilter_core.filtering.thresholds import find_thresholds, find_thresholds_of_all
from tests.mlfilter_core.filtering.conftest import survey_of

NAN = math.nan
FLOATS = st.floats(allow_nan=False, allow_infinity=False, width=32)


def kept(selection: Selection, *surveys: Survey) -> list[list[bool]]:
    thresholds = find_thresholds(selection, lambda: surveys)
    return [thresholds.kept(survey).tolist() for survey in surveys]


def keep(bound: Bound | None = None, **other: object) -> Selection:
    return Selection.model_validate({"scores": {"q": bound or {}}, **other})


def test_the_default_keeps_the_best_thirty_per_cent() -> None:
    scores = np.random.default_rng(0).permutation(1000) / 7
    first, second = survey_of(scores[:400].tolist(), stem="a"), survey_of(scores[400:].tolist(), stem="b")
    assert np.concatenate(kept(keep(), first, second)).tolist() == (scores >= 700 / 7).tolist()


@settings(max_examples=200, deadline=None)
@given(st.lists(FLOATS, min_size=1, max_size=40), st.floats(0, 99.9), st.integers(0, 40))
def test_a_percentile_is_that_of_the_sorted_scores(scores: list[float], percentile: float, at: int) -> None:
    parts = [part for part in (scores[:at], scores[at:]) if part]
    found = kept(keep(Bound(percentile=percentile)), *(survey_of(part, stem=str(i)) for i, part in enumerate(parts)))
    values = np.array(scores, np.float32)
    limit = np.sort(values)[len(scores) * Fraction(str(percentile)) // 100]
    assert np.concatenate(found).tolist() == (values >= limit).tolist()


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(FLOATS, st.integers(0, 50)), min_size=1, max_size=40), st.integers(1, 1000))
def test_the_best_documents_fill_a_budget_of_tokens(documents: Sequence[tuple[float, int]], budget: int) -> None:
    scores, tokens = zip(*documents, strict=True)
    survey = survey_of(scores, tokens)
    (found,) = kept(keep(Bound(best_tokens=budget)), survey)
    order = np.argsort(ranks(survey, "q"))[::-1]
    fits = np.cumsum(np.array(tokens)[order]) <= budget
    expected = np.zeros(len(scores), np.bool_)
    expected[order] = fits
    assert found == expected.tolist()
    assert np.all(np.diff(np.array(scores, np.float32)[order]) <= 0)  # the order is that of the scores


SCORED = st.lists(
    st.tuples(st.one_of(FLOATS, st.sampled_from([0.0, -0.0, 1.0, NAN])), st.integers(0, 50), st.sampled_from("abc")),
    max_size=30,
)


@settings(max_examples=200, deadline=None)
@given(
    *(st.lists(SCORED, min_size=1, max_size=4), st.floats(0, 99.9), st.integers(1, 500), st.integers(1, 8)),
    st.sampled_from([0, 1, 2, 1024]),
)
def test_limits_of_groups_are_those_of_sorted_documents(
    files: Sequence[Sequence[tuple[float, int, str]]],
    percentile: float,
    budget: int,
    block_rows: int,
    max_few_groups: int,
) -> None:
    surveys = []
    for i, documents in enumerate(files):
        scores, tokens, groups = zip(*documents, strict=True) if documents else ((), (), ())
        surveys.append(survey_of(scores, tokens, groups, stem=str(i)))
    of_all = [
        (*document, rank)
        for survey, documents in zip(surveys, files, strict=True)
        for document, rank in zip(documents, ranks(survey, "q").tolist(), strict=True)
    ]
    if all(math.isnan(score) for score, *_ in of_all):
        return
    bounds = [Bound(percentile=percentile), Bound(best_tokens=budget)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rank_search, "BLOCK_ROWS", block_rows)
        patch.setattr(rank_search, "MAX_FEW_GROUPS", max_few_groups)
        selections = [keep(bound, per="k") for bound in bounds]
        by_score, by_tokens = find_thresholds_of_all(selections, lambda: surveys)
    for group in sorted({group for *_, group, _ in of_all}):
        best = sorted(
            ((rank, score, tokens) for score, tokens, own, rank in of_all if own == group and rank), reverse=True
        )
        expected_of_score, expected_of_tokens = ABOVE_ALL, ABOVE_ALL
        if best:
            last = best[len(best) - len(best) * Fraction(str(percentile)) // 100 - 1]
            expected_of_score = lowest_rank_of(last[1])
            sums = np.cumsum([tokens for _, _, tokens in best])
            place = int(np.searchsorted(sums, budget, side="right"))
            expected_of_tokens = best[place][0] + 1 if place < len(best) else LOWEST
        assert by_score.of_scores[0].ranks[group] == expected_of_score
        assert by_tokens.of_scores[0].ranks[group] == expected_of_tokens


@pytest.mark.parametrize("n_groups", [3, 300, 20_000])
def test_limits_of_many_groups_are_those_of_sorted_documents(n_groups: int) -> None:
    surveys = random_surveys(n_groups)
    bounds = [Bound(percentile=12.5), Bound(percentile=90), Bound(best_tokens=400), Bound(best_tokens=20_000)]
    found = find_thresholds_of_all([keep(bound, per="cluster") for bound in bounds], lambda: surveys)
    for bound, thresholds in zip(bounds, found, strict=True):
        assert thresholds.of_scores[0].ranks == limits_by_sorting(surveys, bound)
    kept_of = [thresholds.kept(surveys[0]) for thresholds in found]
    assert 0 < kept_of[1].sum() < kept_of[0].sum() < len(surveys[0])


def random_surveys(n_groups: int) -> list[Survey]:
    """Returns files of 60,000 documents with ties, missing scores, and documents without the key."""
    rng = np.random.default_rng(n_groups)
    surveys = []
    for i in range(6):
        scores = rng.integers(-20, 20, 10_000) / 4  # ties
        scores[rng.random(10_000) < 0.1] = NAN
        scores[rng.random(10_000) < 0.1] *= 1e37
        names, group = np.unique(rng.integers(0, n_groups, 10_000), return_inverse=True)
        groups = tuple("" if name == 0 else str(name) for name in names.tolist())
        survey = survey_of(scores.tolist(), rng.integers(0, 500, 10_000).tolist(), stem=str(i))
        surveys.append(replace(survey, group=group.astype(np.int32), groups=groups))
    return surveys


def limits_by_sorting(surveys: Sequence[Survey], bound: Bound) -> dict[str, int]:
    """Returns the lowest rank that is kept in each group."""
    of_groups: dict[str, list[tuple[int, int]]] = {}
    for survey in surveys:
        for code, rank, tokens in zip(
            survey.group.tolist(), ranks(survey, "q").tolist(), survey.tokens.tolist(), strict=True
        ):
            best = of_groups.setdefault(survey.groups[code], [])
            best += [(rank, tokens)] if rank else []
    limits = {}
    for group, best in of_groups.items():
        best.sort(reverse=True)
        n = len(best)
        if not best:
            limits[group] = ABOVE_ALL
        elif bound.best_tokens is None:
            last = best[n - n * Fraction(str(bound.percentile)) // 100 - 1][0]
            limits[group] = last >> TIE_BITS << TIE_BITS
        else:
            sums = np.cumsum([tokens for _, tokens in best])
            place = int(np.searchsorted(sums, bound.best_tokens, side="right"))
            limits[group] = best[place][0] + 1 if place < n else LOWEST
    return limits


def test_groups_that_are_numbers_are_in_their_order_and_only_the_first_are_named() -> None:
    names = [str(i) for i in (10, -1, *range(100, 160), 2)]
    found = find_thresholds(keep(per="cluster"), lambda: [survey_of([1.0] * 64, groups=["", *names])])
    assert list(found.of_scores[0].ranks)[:5] == ["", "-1", "2", "10", "100"]
    described = found.of_scores[0].describe()
    assert described.startswith("q: percentile 70 of 64 documents, which is '': 1 and above, -1: 1 and above, 2: 1 and")
    assert described.endswith(", 135: 1 and above, and those of 24 more groups")


def test_a_budget_keeps_documents_with_equal_scores_of_every_file() -> None:
    """Not all of the first files, which would favour a few sites."""
    surveys = [survey_of([3.0] * 1000, stem=name) for name in ("a", "b")]
    counts = [sum(each) for each in kept(keep(Bound(best_tokens=1000)), *surveys)]
    assert sum(counts) == 1000
    assert 400 < counts[0] < 600


def test_a_percentile_is_the_decimal_that_was_written() -> None:
    scores = list(range(1000))
    assert (
        sum(kept(keep(Bound(percentile=32.3)), survey_of(scores))[0]) == 677
    )  # 32.3 * 1000 / 100 is below 323 in floats


def test_the_threshold_of_a_budget_is_described() -> None:
    survey = survey_of([7, 8, 6, 9], [10] * 4)
    for budget, words in ((25, "above 7, and as many of 7 as fit"), (40, "all that have the score")):
        told = find_thresholds(keep(Bound(best_tokens=budget)), lambda: [survey]).of_scores[0].describe()
        assert told == f"q: best {budget} tokens of 4 documents, which is {words}"


def test_a_budget_for_all_keeps_all_that_have_a_score() -> None:
    assert kept(keep(Bound(best_tokens=1000)), survey_of([-1e38, 0, NAN], [5, 5, 5])) == [[True, True, False]]


def test_a_score_equal_to_the_threshold_is_kept() -> None:
    assert kept(keep(Bound(threshold=0.1)), survey_of([0.1, np.nextafter(np.float32(0.1), 0), -0.0, 5])) == [
        [True, False, False, True]
    ]
    assert kept(keep(Bound(threshold=0)), survey_of([-0.0, 0.0, -1e-30])) == [[True, True, False]]


def test_each_group_has_its_own_threshold() -> None:
    first = survey_of([1, 2, 3, 10], groups=["de", "de", "de", "en"], stem="a")
    second = survey_of([20, 30, 4, 5], groups=["en", "en", "de", ""], stem="b")
    selection = keep(Bound(percentile=50), per="language")
    assert kept(selection, first, second) == [[False, False, True, False], [True, True, True, True]]
    assert find_thresholds(selection, lambda: [first, second]).of_scores[0].describe() == (
        "q: percentile 50 of 8 documents, which is '': 5 and above, de: 3 and above, en: 20 and above"
    )


def test_at_least_so_many_thresholds_must_be_reached() -> None:
    survey = survey_of({"q": [1, 5, 5, NAN], "r": [5, 5, 1, 5], "s": [5, 1, 1, 5]})
    bounds = {name: Bound(threshold=5) for name in ("q", "r", "s")}
    for at_least, expected in (
        (1, [True, True, True, True]),
        (2, [True, True, False, True]),
        (3, [False, False, False, False]),
        (None, [False, False, False, False]),
    ):
        assert kept(Selection(scores=bounds, at_least=at_least), survey) == [expected]


def test_documents_without_a_score_are_not_kept_and_do_not_count() -> None:
    assert kept(keep(Bound(percentile=50)), survey_of([NAN, 1, NAN, 2, NAN])) == [[False, False, False, True, False]]
    survey = survey_of([NAN, 1], groups=["de", "en"])
    assert kept(keep(per="language"), survey) == [[False, True]]


def test_scores_that_are_all_equal_are_all_kept() -> None:
    assert kept(keep(), survey_of([2.5] * 4)) == [[True] * 4]


def test_an_empty_file_has_nothing_to_keep() -> None:
    assert kept(keep(), survey_of([]), survey_of([1.0], stem="b")) == [[], [True]]


@pytest.mark.parametrize(
    ("selection", "survey", "message"),
    [
        (keep(), survey_of([NAN, NAN]), 'no document has a score "q"; its values are missing or not finite'),
        (keep(), survey_of([]), 'no document has a score "q"'),
        (
            keep(Bound(best_tokens=5)),
            survey_of([1, 2], [5, -1]),
            "needs the number of tokens of each document, which x lacks",
        ),
        (keep(per="lang"), survey_of([1]), 'no document has a key "lang"; it is looked up in the annotated lines'),
        (
            keep(per="id"),
            survey_of([1] * 65537, groups=[str(i) for i in range(65537)]),
            "params.keep.per has more than 65,536 values; name a key",
        ),
    ],
)
def test_selections_that_do_not_fit_the_corpus_are_refused(selection: Selection, survey: Survey, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find_thresholds(selection, lambda: [survey])
