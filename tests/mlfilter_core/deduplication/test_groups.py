"""Which document of a group is kept, and how the others are connected to it."""

import numpy as np

from mlfilter_core.deduplication.edges import Edges
from mlfilter_core.deduplication.groups import documents_in, groups_of


def edges(*pairs: tuple[int, int, float]) -> Edges:
    first, second, cosines = zip(*pairs, strict=True)
    return Edges(np.array(first), np.array(second), np.array(cosines, np.float32))


def test_a_chain_is_one_group_and_the_document_of_the_highest_value_is_kept() -> None:
    chain = edges((10, 20, 0.9), (20, 30, 0.95), (40, 30, 0.91), (7, 8, 0.99))
    assert documents_in(chain).tolist() == [7, 8, 10, 20, 30, 40]
    groups = groups_of(chain, np.array([1.0, 1, 5, 1, 9, 2]))
    assert groups.kept.tolist() == [7, 7, 30, 30, 30, 30]
    assert groups.is_duplicate.tolist() == [False, True, True, True, False, True]
    # Each is connected to its neighbour in the chain on the way to the kept one.
    assert groups.near.tolist() == [7, 7, 20, 30, 30, 30]
    assert groups.cosines.round(2).tolist() == np.array([0, 0.99, 0.9, 0.95, 0, 0.91], np.float32).round(2).tolist()


def test_of_equal_values_the_first_document_is_kept() -> None:
    groups = groups_of(edges((5, 3, 0.9), (3, 9, 0.9)), np.zeros(3))
    assert groups.kept.tolist() == [3, 3, 3]


def test_a_document_without_a_score_is_kept_last() -> None:
    groups = groups_of(edges((0, 1, 0.9)), np.array([-np.inf, -3.0]))
    assert groups.kept.tolist() == [1, 1]


def test_the_largest_groups_come_first() -> None:
    groups = groups_of(edges((0, 1, 0.9), (5, 6, 0.9), (6, 7, 0.9)), np.zeros(5))
    assert [(kept, groups.rows[members].tolist()) for kept, members in groups.largest(9)] == [
        (5, [5, 6, 7]),
        (0, [0, 1]),
    ]
    assert len(groups.largest(1)) == 1


def test_there_may_be_no_group() -> None:
    groups = groups_of(Edges(), np.empty(0))
    assert len(groups.rows) == len(groups.cosines) == 0
    assert groups.largest(3) == []
