import numpy as np
import pytest

from mlfilter_core.config.filtering import Bound
from mlfilter_core.filtering.rank_search import N_RANGES, RankSearch, run_searches
from mlfilter_core.filtering.ranks import ABOVE_ALL, LOWEST, lowest_rank_of, ranks
from mlfilter_core.filtering.survey import Survey
from tests.mlfilter_core.filtering.conftest import survey_of

GROUPS = ["a", "b", "c"]
SURVEY = survey_of({"q": [1, 2, 3, 4], "r": [4, 3, 2, 1]}, [5] * 4, groups=["a", "b", "a", "b"])
N_SCORED = np.array([2, 2, 0])


@pytest.mark.parametrize(("max_counters", "n_passes"), [(1 << 30, 4), (2 * 3 * N_RANGES, 6), (1, 8)])
def test_searches_share_passes_as_far_as_memory_allows(max_counters: int, n_passes: int) -> None:
    passes = []

    def surveys() -> list[Survey]:
        passes.append(1)
        return [SURVEY]

    searches = [
        RankSearch.of("q", Bound(percentile=50), N_SCORED),
        RankSearch.of("r", Bound(percentile=50), N_SCORED),
        RankSearch.of("r", Bound(best_tokens=5), N_SCORED),
    ]
    run_searches(searches, GROUPS, surveys, max_counters)
    assert searches[0].lowest_kept() == [lowest_rank_of(3), lowest_rank_of(4), ABOVE_ALL]
    assert searches[1].lowest_kept() == [lowest_rank_of(4), lowest_rank_of(3), ABOVE_ALL]
    exceeding = ranks(SURVEY, "r")[[2, 3]]  # the second best of each group
    assert searches[2].lowest_kept() == [*(exceeding + np.uint64(1)).tolist(), ABOVE_ALL]
    assert len(passes) == n_passes


def test_a_budget_that_is_never_exceeded_keeps_every_score() -> None:
    search = RankSearch.of("q", Bound(best_tokens=10), N_SCORED)
    run_searches([search], GROUPS, lambda: [SURVEY])
    assert search.lowest_kept() == [LOWEST, LOWEST, ABOVE_ALL]
