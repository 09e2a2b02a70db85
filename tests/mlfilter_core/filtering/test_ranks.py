import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mlfilter_core.filtering.ranks import ABOVE_ALL, LOWEST, TIE_BITS, lowest_rank_of, ranks, score_of
from tests.mlfilter_core.filtering.conftest import survey_of

FLOATS = st.floats(allow_nan=False, allow_infinity=False, width=32)


@given(st.lists(FLOATS, min_size=1, max_size=40))
def test_ranks_are_in_the_order_of_the_scores(scores: list[float]) -> None:
    survey = survey_of(scores)
    by_score, found = ranks(survey, "q", break_ties=False), ranks(survey, "q")
    assert by_score.tolist() == [lowest_rank_of(score) for score in scores]
    assert (found >> np.uint64(TIE_BITS) == by_score >> np.uint64(TIE_BITS)).all()
    assert [score_of(rank) for rank in found.tolist()] == scores
    assert (np.diff(np.array(scores, np.float32)[np.argsort(found)]) >= 0).all()
    assert ((found >= LOWEST) & (found < ABOVE_ALL)).all()


def test_a_document_without_the_score_has_rank_0() -> None:
    assert [rank > 0 for rank in ranks(survey_of([math.nan, -1e38]), "q").tolist()] == [False, True]


def test_equal_scores_have_ranks_that_depend_on_file_and_row() -> None:
    found = np.concatenate([ranks(survey_of([1.0] * 1000, stem=stem), "q") for stem in ("a", "b")])
    assert len(np.unique(found)) == 2000


def test_a_part_of_a_survey_has_the_ranks_of_its_rows() -> None:
    survey = survey_of([1.0, 2.0, 1.0, math.nan, 1.0])
    for rows in (slice(0, 2), slice(1, 4), slice(3, 9)):
        part = survey.part(rows)
        assert ranks(part, "q").tolist() == ranks(survey, "q")[rows].tolist()
        assert ranks(part.part(slice(1, 2)), "q").tolist() == ranks(survey, "q")[rows][1:2].tolist()
