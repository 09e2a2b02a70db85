"""Bounds of cosines, and the pairs found with them, beside the products of all vectors."""

import numpy as np
import pytest
import torch

from mlfilter_core.deduplication import pairs as pairs_module
from mlfilter_core.deduplication.bounds import BoundedVectors, bounded, find_directions
from mlfilter_core.deduplication.edges import Edges, joined
from mlfilter_core.deduplication.pairs import similar_between, similar_within

N, DIM = 3000, 96


def topics(n: int, decay: float, noise: float = 0.7) -> torch.Tensor:
    """Returns unit vectors around topics, which vary less in each direction; a tenth of them is near another one."""
    numbers = np.random.default_rng(0)
    vectors = numbers.standard_normal((10, DIM))[numbers.integers(0, 10, n)]
    vectors += noise * numbers.standard_normal((n, DIM))
    vectors *= np.exp(-np.arange(DIM) / decay)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    copies, originals = numbers.permutation(n)[: n // 5].reshape(2, -1)
    vectors[copies] = vectors[originals] + 0.04 * numbers.standard_normal((len(copies), DIM))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return torch.from_numpy(vectors).float()


def found(edges: Edges) -> dict[tuple[int, int], float]:
    return dict(zip(zip(edges.first.tolist(), edges.second.tolist(), strict=True), edges.cosines.tolist(), strict=True))


def expected(
    vectors: torch.Tensor, others: torch.Tensor, threshold: float, within: bool
) -> dict[tuple[int, int], float]:
    cosines = vectors.double() @ others.double().T
    is_pair = cosines >= threshold
    if within:
        is_pair = is_pair.triu(1)
    first, second = is_pair.nonzero(as_tuple=True)
    return found(Edges(first.numpy(), second.numpy(), cosines[first, second].float().numpy()))


@pytest.mark.parametrize("k", [0, 1, 10, 50, DIM])
@pytest.mark.parametrize("decay", [3.0, 1e9])
def test_no_bound_is_below_the_cosine(k: int, decay: float) -> None:
    vectors = topics(1000, decay)
    vectors[:10] = vectors[10]  # what is left of equal ones is in one direction
    directions = torch.linalg.svd(vectors, full_matrices=False).Vh.T[:, :k]
    vectors = torch.cat([vectors, directions.T, -directions.T])  # of these, nothing is left
    short = bounded(vectors, directions).short
    assert short.shape == (len(vectors), k + 1)
    excess = (short @ short.T).double() - vectors.double() @ vectors.double().T
    assert float(excess.min()) > -1e-6
    if k == DIM:
        assert float(excess.max()) < 1e-4


@pytest.mark.parametrize("gathering", [0, 70, 10**9])
@pytest.mark.parametrize("threshold", [0.6, 0.9])
@pytest.mark.parametrize("block", [5_000, 1 << 19])
def test_the_pairs_are_those_of_all_products(
    gathering: int, threshold: float, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pairs_module, "BLOCK_COSINES", block)
    monkeypatch.setattr(pairs_module, "GATHERING", gathering)
    monkeypatch.setattr(pairs_module, "GATHERED", 10 * DIM)
    vectors, others = topics(600, 20.0), topics(900, 20.0)[500:]
    directions = torch.linalg.svd(others, full_matrices=False).Vh.T[:, :12]
    one, other = (bounded(each, directions) for each in (vectors, others))
    within = joined(list(similar_within(one, threshold)))
    between = joined(list(similar_between(one, other, threshold)))
    assert found(within) == pytest.approx(expected(vectors, vectors, threshold, within=True), abs=1e-6)
    assert found(between) == pytest.approx(expected(vectors, others, threshold, within=False), abs=1e-6)
    assert len(within) > 50
    assert found(joined(list(similar_within(bounded(vectors), threshold)))) == pytest.approx(found(within), abs=1e-6)


def test_pairs_that_are_connected_are_left_out() -> None:
    vectors = topics(600, 20.0)
    directions = torch.linalg.svd(vectors, full_matrices=False).Vh.T[:, :12]
    labels = torch.arange(600, dtype=torch.int32) // 300
    edges = joined(list(similar_within(bounded(vectors, directions), 0.6, lambda: (labels, labels))))
    pairs = expected(vectors, vectors, 0.6, within=True)
    assert set(found(edges)) == {(one, other) for one, other in pairs if one < 300 <= other}


def test_as_few_directions_are_taken_as_the_vectors_need() -> None:
    def n_dimensions(vectors: torch.Tensor, threshold: float = 0.9) -> int | None:
        directions = find_directions(vectors, vectors[:500], vectors[500:1500], threshold)
        if directions is None:
            return None
        assert torch.allclose(directions.T @ directions, torch.eye(directions.shape[1]), atol=1e-5)
        return directions.shape[1] + 1

    short, long = n_dimensions(topics(N, 10.0)), n_dimensions(topics(N, 40.0))
    assert short is not None
    assert long is not None
    assert short < long <= DIM // 2
    assert n_dimensions(topics(N, 10.0)[:1000]) is None  # too few
    assert n_dimensions(topics(N, 1e9, noise=0.3), 0.9) is None  # a bound leaves most pairs


def test_directions_and_pairs_are_the_same_on_any_number_of_threads() -> None:
    vectors, own = topics(N, 20.0), torch.get_num_threads()
    found_by = []
    try:
        for n_threads in (1, 2, 3):
            torch.set_num_threads(n_threads)
            directions = find_directions(vectors, vectors[:500], vectors[500:1500], 0.9)
            assert torch.get_num_threads() == n_threads
            assert directions is not None
            found_by.append((directions, found(joined(list(similar_within(bounded(vectors, directions), 0.9))))))
    finally:
        torch.set_num_threads(own)
    for directions, pairs in found_by[1:]:
        assert torch.equal(directions, found_by[0][0])
        assert pairs == found_by[0][1]


def test_slices_keep_their_short_vectors() -> None:
    vectors = topics(50, 10.0)
    directions = torch.linalg.qr(torch.ones(DIM, 1)).Q
    some = bounded(vectors, directions)[10:20]
    assert torch.allclose(some.short, bounded(vectors[10:20], directions).short, atol=1e-6)
    assert some.is_short
    plain = bounded(vectors)[torch.tensor([3, 1])]
    assert isinstance(plain, BoundedVectors)
    assert not plain.is_short
    assert torch.equal(plain.vectors, vectors[[3, 1]])
