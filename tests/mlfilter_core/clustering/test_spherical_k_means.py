from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.cluster import KMeans

from mlfilter_core.clustering import spherical_k_means
from mlfilter_core.clustering.spherical_k_means import blocks, find_cells, find_centroids, nearest
from tests.mlfilter_core.clustering.topics import vectors_of


def mixture(n: int, dim: int, n_topics: int, seed: int = 0) -> torch.Tensor:
    """Vectors around topics of very different sizes, as those of web pages are, float32 (n, dim)."""
    numbers = np.random.default_rng(seed)
    shares = numbers.pareto(1.0, n_topics) + 0.1
    topics = numbers.choice(n_topics, n, p=shares / shares.sum())
    vectors = numbers.standard_normal((n_topics, dim))[topics] + 0.7 * numbers.standard_normal((n, dim))
    return torch.nn.functional.normalize(torch.from_numpy(vectors.astype(np.float32)))


def mean_distance(vectors: torch.Tensor, centroids: torch.Tensor) -> float:
    return float(1 - nearest(vectors, centroids)[1].double().mean())


def test_the_nearest_centroids_are_those_of_the_definition() -> None:
    vectors, centroids = mixture(500, 24, 9), mixture(33, 24, 33, seed=1)
    cosines = vectors.double() @ centroids.double().T
    labels, of_own = nearest(vectors, centroids)
    assert torch.equal(labels, cosines.argmax(dim=1))
    assert torch.allclose(of_own.double(), cosines.max(dim=1).values, atol=1e-6)


def test_blocks_cover_all_vectors_once_however_many_clusters_there_are() -> None:
    for n_clusters in (1, 1000, 1 << 27):
        assert [i for rows in blocks(10, n_clusters) for i in range(rows.start, rows.stop)] == list(range(10))


def test_each_block_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spherical_k_means, "BLOCK_BYTES", 4 * 9 * 100)
    told: list[float] = []
    nearest(mixture(500, 24, 9), mixture(9, 24, 9, seed=1), told.append)
    assert told == [0.2, 0.4, 0.6, 0.8, 1]


@pytest.mark.parametrize("n_clusters", [7, 40])
def test_it_finds_clusters_as_close_as_those_of_scikit_learn(n_clusters: int) -> None:
    vectors = mixture(6000, 24, 30)
    peer = KMeans(n_clusters, n_init=1, random_state=0).fit(vectors.numpy())
    peers = torch.nn.functional.normalize(torch.from_numpy(peer.cluster_centers_))
    ours = find_centroids(vectors, n_clusters, seed=0)
    assert len(ours) == n_clusters
    assert mean_distance(vectors, ours) <= 1.02 * mean_distance(vectors, peers)


def test_the_seed_decides() -> None:
    vectors = mixture(2000, 24, 30)
    first = find_centroids(vectors, 12, seed=1)
    assert torch.equal(first, find_centroids(vectors, 12, seed=1))
    assert not torch.equal(first, find_centroids(vectors, 12, seed=2))


def test_topics_that_lie_apart_are_found_exactly() -> None:
    topics = np.arange(300) % 5
    vectors = torch.from_numpy(vectors_of(topics))
    labels, _ = nearest(vectors, find_centroids(vectors, 5, seed=3))
    assert len({(int(topic), int(label)) for topic, label in zip(topics, labels, strict=True)}) == 5


def equal(n: int) -> NDArray[np.float32]:
    return np.repeat(vectors_of(np.array([1])), n, axis=0)


def opposite(n: int) -> NDArray[np.float32]:
    return np.concatenate([equal(n // 2), -equal(n - n // 2)])


@pytest.mark.parametrize(
    ("make", "n", "n_clusters", "n_found"),
    [(equal, 50, 4, 1), (opposite, 50, 4, 2), (equal, 1, 9, 1), (opposite, 2, 9, 2), (opposite, 9, 1, 1)],
)
def test_there_are_no_more_clusters_than_different_vectors(
    make: Callable[[int], NDArray[np.float32]], n: int, n_clusters: int, n_found: int
) -> None:
    vectors = torch.from_numpy(make(n))
    centroids = find_centroids(vectors, n_clusters, seed=0)
    assert len(centroids) == n_found
    assert bool(torch.isfinite(centroids).all())
    assert torch.allclose(centroids.norm(dim=1), torch.ones(n_found))
    if n_found > 1:
        assert mean_distance(vectors, centroids) < 1e-6


def test_a_cluster_that_loses_its_vectors_begins_anew() -> None:
    numbers = np.random.default_rng(0)
    for seed in range(30):
        vectors = torch.nn.functional.normalize(
            torch.from_numpy(numbers.standard_normal((40, 3)).round(1).astype(np.float32) + 0.01)
        )
        centroids = find_centroids(vectors, 20, seed)
        assert len(nearest(vectors, centroids)[0].unique()) == len(centroids)


def test_cells_are_at_most_a_third_farther_than_clusters_of_the_same_number() -> None:
    vectors = mixture(6000, 96, 300)
    cells, sizes = find_cells(vectors, 200)
    assert torch.allclose(cells.norm(dim=1), torch.ones(len(cells)))
    labels, _ = nearest(vectors, cells)
    assert torch.equal(torch.bincount(labels, minlength=len(cells)), sizes)
    assert int(sizes.min()) > 0
    clusters = find_centroids(vectors, 200, seed=0)
    assert mean_distance(vectors, cells) < 4 / 3 * mean_distance(vectors, clusters)


@pytest.mark.parametrize(("make", "n", "n_found"), [(equal, 50, 1), (opposite, 50, 2), (equal, 1, 1)])
def test_there_are_no_more_cells_than_different_vectors(
    make: Callable[[int], NDArray[np.float32]], n: int, n_found: int
) -> None:
    cells, sizes = find_cells(torch.from_numpy(make(n)), n)
    assert (len(cells), int(sizes.sum())) == (n_found, n)


def test_near_duplicates_share_a_cell_however_many_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spherical_k_means, "BLOCK_BYTES", 4 * 9 * 100)  # many blocks
    numbers = np.random.default_rng(0)
    family = numbers.standard_normal(64) + 0.2 * numbers.standard_normal((300, 64))
    vectors = numbers.permutation(np.concatenate([family, numbers.standard_normal((300, 64))]))
    vectors = torch.nn.functional.normalize(torch.from_numpy(vectors.astype(np.float32)))
    cells, sizes = find_cells(vectors, 60)
    assert len(cells) > 20
    assert int(sizes.max()) >= 300
