import json
from functools import reduce

import numpy as np
import pytest

from mlfilter_core.tallies.score_statistics import (
    ScoreStatistics,
    read_score_statistics,
    score_statistics,
    write_score_statistics,
)


@pytest.fixture
def scores() -> dict[str, np.ndarray]:
    """Two correlated scores around a large mean, and a constant score."""
    generator = np.random.default_rng(0)
    one = generator.normal(1000, 0.5, 4000)
    return {
        "a": one.astype(np.float32),
        "b": (one - 3 * generator.normal(0, 0.5, 4000)).astype(np.float32),
        "c": np.full(4000, 0.1, np.float32),
    }


def parts(scores: dict[str, np.ndarray], n: int) -> list[ScoreStatistics]:
    return [score_statistics({name: values[i : i + n] for name, values in scores.items()}) for i in range(0, 4000, n)]


@pytest.mark.parametrize("n", [1, 7, 999])
def test_the_sum_over_batches_is_what_all_scores_look_like(scores: dict[str, np.ndarray], n: int) -> None:
    found = reduce(ScoreStatistics.__add__, parts(scores, n))
    values = np.array(list(scores.values()), np.float64)
    assert found.n == 4000
    np.testing.assert_allclose(found.means, values.mean(axis=1), rtol=1e-12)
    np.testing.assert_allclose(found.deviations(), values.std(axis=1), rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(found.minima, values.min(axis=1))
    np.testing.assert_array_equal(found.maxima, values.max(axis=1))
    np.testing.assert_allclose(found.correlations()[:2, :2], np.corrcoef(values[:2]), rtol=1e-9)
    whole = score_statistics(scores)
    assert found.histograms == whole.histograms


def test_a_score_that_never_changes_goes_together_with_none(scores: dict[str, np.ndarray]) -> None:
    correlations = reduce(ScoreStatistics.__add__, parts(scores, 500)).correlations()
    assert np.isnan(correlations[2]).all() and np.isnan(correlations[:, 2]).all()
    assert np.isfinite(correlations[:2, :2]).all()


def test_nothing_adds_nothing(scores: dict[str, np.ndarray]) -> None:
    empty = score_statistics({name: values[:0] for name, values in scores.items()})
    whole = score_statistics(scores)
    for found in (empty + whole, whole + empty):
        assert found.n == 4000
        np.testing.assert_allclose(found.products, whole.products)
        np.testing.assert_allclose(found.means, whole.means)
    assert (empty + empty).n == 0
    assert score_statistics({}).n == 0


def test_scores_of_other_names_do_not_add_up(scores: dict[str, np.ndarray]) -> None:
    with pytest.raises(ValueError, match="do not add up"):
        score_statistics(scores) + score_statistics({"a": scores["a"]})


def test_they_come_back_from_json(scores: dict[str, np.ndarray]) -> None:
    for found in (score_statistics(scores), score_statistics({name: values[:0] for name, values in scores.items()})):
        read = read_score_statistics(json.loads(json.dumps(write_score_statistics(found), allow_nan=False)))
        assert (read.names, read.n, read.histograms) == (found.names, found.n, found.histograms)
        np.testing.assert_array_equal(read.products, np.triu(found.products) + np.triu(found.products, 1).T)
        np.testing.assert_array_equal(read.minima, found.minima)


def test_statistics_that_lack_a_score_are_refused(scores: dict[str, np.ndarray]) -> None:
    written = write_score_statistics(score_statistics(scores))
    with pytest.raises(ValueError, match="statistics of 3 scores"):
        read_score_statistics({**written, "means": [1.0]})
