"""Which cells a document is compared in."""

import numpy as np
import pytest
import torch

from mlfilter_core.deduplication.borders import HOMELESS, visits
from tests.mlfilter_core.deduplication.corpora import planted


@pytest.mark.parametrize("threshold", [0.7, 0.9, 0.99])
def test_no_pair_is_missed_where_all_cells_may_be_visited(threshold: float) -> None:
    vectors = planted(2_000, 800)
    centroids = torch.nn.functional.normalize(torch.from_numpy(vectors[:40]))
    homes, visitors, visited = visits(torch.from_numpy(vectors), centroids, threshold, len(centroids))
    compared = {(i, home) for i, home in enumerate(homes.tolist())}
    compared |= set(zip(visitors.tolist(), visited.tolist(), strict=True))
    one_by_one = [visits(torch.from_numpy(vectors[i : i + 1]), centroids, threshold, 40) for i in range(50)]
    assert [int(home) for home, _, _ in one_by_one] == homes[:50].tolist()
    assert torch.equal(torch.cat([visited for *_, visited in one_by_one]), visited[visitors < 50])
    pairs = np.argwhere(np.triu(vectors @ vectors.T >= threshold, 1)).tolist()
    across = [(i, j) for i, j in pairs if homes[i] != homes[j]]
    assert len(across) > 5
    assert all((i, int(homes[j])) in compared or (j, int(homes[i])) in compared for i, j in pairs)


def test_a_document_far_from_every_border_visits_no_cell_and_one_on_a_border_both() -> None:
    centroids = torch.eye(3)
    vectors = torch.nn.functional.normalize(torch.tensor([[1.0, 0, 0], [1, 0.99, 0], [1, 0.9, 0.8]]))
    homes, visitors, visited = visits(vectors, centroids, 0.99, 2)
    assert homes.tolist() == [0, 0, 0]
    assert list(zip(visitors.tolist(), visited.tolist(), strict=True)) == [(1, 1), (2, 1)]


def test_neighbours_bound_the_visits_to_the_nearest_cells() -> None:
    vectors = torch.nn.functional.normalize(torch.tensor([[1.0, 0.9, 0.8, 0.7]]))
    for neighbours, expected in ((0, []), (1, [1]), (2, [1, 2]), (9, [1, 2, 3])):
        _, _, visited = visits(vectors, torch.eye(4), 0.5, neighbours)
        assert visited.tolist() == expected


def test_zeros_have_no_cell_and_visit_none() -> None:
    homes, visitors, visited = visits(torch.zeros(2, 3), torch.eye(3), 0.5, 2)
    assert homes.tolist() == [HOMELESS, HOMELESS]
    assert len(visitors) == len(visited) == 0
