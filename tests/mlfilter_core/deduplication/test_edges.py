"""Edges, and the forest of those that connect places best."""

import numpy as np
import pytest

from mlfilter_core.deduplication import edges as edges_module
from mlfilter_core.deduplication.edges import Edges, Forest, components, joined, spanning_forest


def random_edges(n: int, n_edges: int, seed: int = 0) -> Edges:
    numbers = np.random.default_rng(seed)
    first, second = numbers.integers(0, n, (2, n_edges))
    cosines = numbers.uniform(0.8, 1, n_edges).round(3).astype(np.float32)
    return Edges(first, second, cosines)[first != second]


@pytest.mark.parametrize("seed", range(5))
def test_the_forest_connects_the_same_places_at_every_threshold_with_fewer_edges(seed: int) -> None:
    edges = random_edges(200, 400, seed)
    forest = spanning_forest(edges, 200)
    assert len(forest) < 200
    for threshold in (0.8, 0.9, 0.95, 0.99):
        all_of, own = (components(each[each.cosines >= threshold], 200) for each in (edges, forest))
        assert len(set(zip(all_of.tolist(), own.tolist(), strict=True))) == len(set(all_of.tolist()))


def test_the_edges_of_the_forest_are_edges_that_were_given() -> None:
    edges = random_edges(50, 300)
    given = {(*sorted((i, j)), c) for i, j, c in zip(edges.first, edges.second, edges.cosines, strict=True)}
    forest = spanning_forest(edges, 50)
    assert {(*sorted((i, j)), c) for i, j, c in zip(forest.first, forest.second, forest.cosines, strict=True)} <= given


def test_a_forest_that_is_reduced_often_equals_one_of_all_edges(monkeypatch: pytest.MonkeyPatch) -> None:
    levels = [0.8, 0.85, 0.9, 0.95]
    parts = [random_edges(100, 60, seed) for seed in range(20)]
    expected = spanning_forest(joined(parts), 100)
    monkeypatch.setattr(edges_module, "MOST_EDGES", 50)
    forest = Forest(100, levels)
    for part in parts:
        forest.add(part)
    found = forest.edges()
    for level in levels:
        one, other = (components(each[each.cosines >= level - 1e-6], 100) for each in (expected, found))
        pairs = set(zip(one.tolist(), other.tolist(), strict=True))
        assert len(pairs) == len(set(one.tolist())) == len(set(other.tolist()))


def test_no_edges_are_a_forest() -> None:
    assert len(spanning_forest(Edges(), 3)) == len(Forest(3, [0.9]).edges()) == 0
