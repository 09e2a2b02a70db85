import numpy as np
import pytest

from mlfilter_core.config.filtering import Bound
from mlfilter_core.filtering import rank_search
from mlfilter_core.filtering.rank_search import FEW_BITS, MANY_BITS, RankSearch, run_searches
from mlfilter_core.filtering.ranks import ABOVE_ALL, LOWEST, lowest_rank_of, ranks
from mlfilter_core.filtering.survey import Survey
from tests.mlfilter_core.filtering.conftest import survey_of

NAN = float("nan")
SURVEY = survey_of(
    {"q": [1, 2, 3, 4, NAN], "r": [4, 3, 2, 1, NAN], "s": [1] * 5}, [5] * 5, groups=["a", "b", "a", "b", "c"]
)


@pytest.mark.parametrize(
    ("max_counters", "n_passes"),
    [
        (1 << 30, 4),
        (9 << FEW_BITS, 5),  # the threshold has a pass of its own
        (6 << FEW_BITS, 7),  # the budget, too
        (1, 9),
    ],
)
def test_searches_share_passes_as_far_as_memory_allows(max_counters: int, n_passes: int) -> None:
    passes = []

    def surveys() -> list[Survey]:
        passes.append(1)
        return [SURVEY]

    searches = [
        RankSearch("q", Bound(percentile=50)),
        RankSearch("r", Bound(percentile=50)),
        RankSearch("r", Bound(best_tokens=5)),
        RankSearch("s", Bound(threshold=2)),
    ]
    assert run_searches(searches, surveys, max_counters) == ["a", "b", "c"]
    assert searches[0].lowest_kept() == [lowest_rank_of(3), lowest_rank_of(4), ABOVE_ALL]
    assert searches[1].lowest_kept() == [lowest_rank_of(4), lowest_rank_of(3), ABOVE_ALL]
    exceeding = ranks(SURVEY, "r")[[2, 3]]  # the second best of each group
    assert searches[2].lowest_kept() == [*(exceeding + np.uint64(1)).tolist(), ABOVE_ALL]
    assert searches[3].lowest_kept() == [lowest_rank_of(2)] * 3
    assert len(passes) == n_passes


def test_limits_of_one_score_share_the_counters_of_the_first_pass_only() -> None:
    passes = []

    def surveys() -> list[Survey]:
        passes.append(1)
        return [SURVEY]

    searches = [RankSearch("q", Bound(percentile=percentile)) for percentile in (0, 50, 99)]
    run_searches(searches, surveys, max_counters=6 << FEW_BITS)
    assert [search.lowest_kept()[0] for search in searches] == [lowest_rank_of(score) for score in (1, 3, 3)]
    assert len(passes) == 3


def test_a_budget_that_is_never_exceeded_keeps_every_score() -> None:
    search = RankSearch("q", Bound(best_tokens=10))
    run_searches([search], lambda: [SURVEY])
    assert search.lowest_kept() == [LOWEST, LOWEST, ABOVE_ALL]


@pytest.mark.parametrize(("max_few_groups", "n_passes"), [(3, 2), (2, 4), (0, 4)])
def test_many_groups_take_more_passes_with_fewer_counters(
    max_few_groups: int, n_passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third group appears in the second file, after the first one was counted."""
    monkeypatch.setattr(rank_search, "MAX_FEW_GROUPS", max_few_groups)
    parts = [survey_of({"q": [1, 2]}, groups=["a", "b"]), SURVEY]
    passes = []

    def surveys() -> list[Survey]:
        passes.append(1)
        return parts

    search = RankSearch("q", Bound(percentile=50))
    assert run_searches([search], surveys) == ["a", "b", "c"]
    assert search.lowest_kept() == [lowest_rank_of(1), lowest_rank_of(2), ABOVE_ALL]  # of 1, 1, 3 and of 2, 2, 4
    assert len(passes) == n_passes


def test_searches_in_many_groups_share_passes_as_far_as_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_search, "MAX_FEW_GROUPS", 2)
    passes = []

    def surveys() -> list[Survey]:
        passes.append(1)
        return [SURVEY]

    searches = [RankSearch(name, Bound(percentile=50)) for name in ("q", "r")]
    run_searches(searches, surveys, max_counters=6 << MANY_BITS)
    assert len(passes) == 4
    run_searches([RankSearch(name, Bound(percentile=50)) for name in ("q", "r")], surveys, max_counters=3 << MANY_BITS)
    assert len(passes) == 4 + 8
    assert [search.lowest_kept()[:2] for search in searches] == [
        [lowest_rank_of(3), lowest_rank_of(4)],
        [lowest_rank_of(4), lowest_rank_of(3)],
    ]


def test_the_lowest_scores_are_not_mistaken_for_missing_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both share the lowest of 256 ranges."""
    monkeypatch.setattr(rank_search, "MAX_FEW_GROUPS", 0)
    lowest = float(np.finfo(np.float32).min)
    survey = survey_of({"q": [NAN, lowest, lowest / 2, NAN]}, [5] * 4)
    searches = [RankSearch("q", Bound(percentile=percentile)) for percentile in (0, 50)]
    searches += [RankSearch("q", Bound(best_tokens=n_tokens)) for n_tokens in (5, 10)]
    run_searches(searches, lambda: [survey])
    by_rank = ranks(survey, "q").tolist()
    assert [search.lowest_kept()[0] for search in searches] == [
        *(lowest_rank_of(lowest), lowest_rank_of(lowest / 2)),
        *(by_rank[1] + 1, LOWEST),
    ]
    assert searches[0].n_scored.tolist() == [2]
