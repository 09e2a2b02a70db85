"""Spherical k-means: unit vectors to centroids that have the highest mean cosine with their nearest vectors.

Seeds are drawn as greedy k-means++ draws them (Arthur and Vassilvitskii, 2007). Lloyd's iterations follow, with
centroids of unit length (Dhillon and Modha, 2001). On a CPU, the same vectors give the same centroids; a
GPU adds them in another order each time, so that rounding differs. MPS does not have the float64 that is needed.
"""

import functools
import math
from collections.abc import Callable, Iterator

import torch

SEED_ROWS = 16  # vectors for each seed among which seeds are drawn; more would take longer than the iterations
MOST_ITERATIONS = 50
TOLERANCE = 1e-4  # share of the mean distance by which it has to fall for another iteration
BLOCK_BYTES = 256 << 20  # of cosines in memory at a time
SAME = 1e-6  # squared distance of vectors that differ by rounding
SIMILAR = 0.8  # cosine of near-duplicates, at the lowest threshold that is usual

Tell = Callable[[float], None]


def blocks(n_rows: int, n_clusters: int) -> Iterator[slice]:
    """Yields slices of vectors whose cosines with all centroids fit in `BLOCK_BYTES`."""
    step = max(1, BLOCK_BYTES // (4 * max(1, n_clusters)))
    return (slice(start, min(start + step, n_rows)) for start in range(0, n_rows, step))


def nearest(
    vectors: torch.Tensor, centroids: torch.Tensor, tell: Tell = lambda share: None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the nearest centroid of each vector, and its cosine.

    Args:
        vectors: float32 (n, dim), of unit length.
        centroids: float32 (k, dim), of unit length.
        tell: Called with the share that is done, from 0 to 1, after each block.

    Returns:
        int64 (n,), and float32 (n,).
    """
    labels = torch.empty(len(vectors), dtype=torch.int64, device=vectors.device)
    cosines = torch.empty(len(vectors), dtype=torch.float32, device=vectors.device)
    for rows in blocks(len(vectors), len(centroids)):
        cosines[rows], labels[rows] = (vectors[rows] @ centroids.T).max(dim=1)
        tell(rows.stop / len(vectors))
    return labels, cosines


def find_centroids(vectors: torch.Tensor, n_clusters: int, seed: int, tell: Tell = lambda share: None) -> torch.Tensor:
    """Returns centroids, float32 (k, dim), of unit length, none without a vector.

    There are fewer than `n_clusters` only where fewer vectors differ.

    Args:
        vectors: float32 (n, dim), of unit length, in an order that does not depend on their content; n > 0.
        n_clusters: Number of clusters.
        seed: Seed of the draws.
        tell: Called with the share that is done, from 0 to 1, after each seed and each block of vectors.
    """
    centroids = _seeds(vectors, n_clusters, seed, lambda share: tell(0.5 * share))
    before = float("inf")
    for iteration in range(MOST_ITERATIONS):
        labels, cosines = nearest(vectors, centroids, functools.partial(_tell_iteration, tell, iteration))
        distance = float(1 - cosines.double().mean())
        if before - distance <= TOLERANCE * distance:
            break
        before = distance
        centroids = _means(vectors, labels, cosines, len(centroids))
    else:
        labels, _ = nearest(vectors, centroids)
    return centroids[torch.bincount(labels, minlength=len(centroids)) > 0]


def find_cells(
    vectors: torch.Tensor, n_cells: int, tell: Tell = lambda share: None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the centres of small cells: the mean directions of the vectors nearest to some of them.

    This takes two passes over the vectors, and finding clusters of the same number some fifty. Two of the first
    vectors that are near-duplicates give one cell, so that a large family of near-duplicates is not cut into pieces.

    Args:
        vectors: float32 (n, dim), of unit length, in an order that does not depend on their content; n > 0.
        n_cells: Most cells; there are fewer where some of the first vectors are similar.
        tell: As for `nearest`, for both passes over the vectors.

    Returns:
        float32 (m, dim), of unit length, none without a vector; and the vectors of each, int64 (m,).
    """
    first = _far_apart(vectors[:n_cells])
    labels, cosines = nearest(vectors, first, lambda share: tell(0.5 * share))
    cells = _means(vectors, labels, cosines, len(first))
    labels, _ = nearest(vectors, cells, lambda share: tell(0.5 + 0.5 * share))
    sizes = torch.bincount(labels, minlength=len(cells))
    return cells[sizes > 0], sizes[sizes > 0]


def _far_apart(vectors: torch.Tensor) -> torch.Tensor:
    """Returns the vectors that are not similar to one before them."""
    is_new = torch.empty(len(vectors), dtype=torch.bool, device=vectors.device)
    for rows in blocks(len(vectors), len(vectors)):
        with_those_before = (vectors[rows] @ vectors[: rows.stop].T).tril(rows.start - 1)
        is_new[rows] = (with_those_before < SIMILAR).all(dim=1)
    return vectors[is_new]


def _tell_iteration(tell: Tell, iteration: int, share: float) -> None:
    tell(0.5 + 0.5 * (iteration + share) / MOST_ITERATIONS)


def _seeds(vectors: torch.Tensor, n_clusters: int, seed: int, tell: Tell) -> torch.Tensor:
    """Returns vectors far from each other: of some drawn by their squared distance from those before, the best one."""
    some = vectors[: SEED_ROWS * n_clusters]
    generator = torch.Generator().manual_seed(seed)
    n_draws = 2 + int(math.log(n_clusters))
    draws = torch.rand((n_clusters, n_draws), generator=generator, dtype=torch.float64).to(some.device)
    chosen = [int(draws[0, 0] * len(some))]
    squared = 2 - 2 * (some @ some[chosen[0]])
    for number in range(1, n_clusters):
        squared[squared < SAME] = 0
        sums = squared.double().cumsum(0)
        if not sums[-1]:  # every vector is a seed, or the same as one
            break
        drawn = torch.searchsorted(sums, draws[number] * sums[-1], right=True).clamp(max=len(some) - 1)
        with_each = torch.minimum(squared[:, None], 2 - 2 * (some @ some[drawn].T))
        best = int(with_each.sum(dim=0).argmin())
        chosen.append(int(drawn[best]))
        squared = with_each[:, best].contiguous()
        tell(number / n_clusters)
    return some[chosen].clone()


def _means(vectors: torch.Tensor, labels: torch.Tensor, cosines: torch.Tensor, n_clusters: int) -> torch.Tensor:
    """Returns the mean direction of each cluster; one without vectors begins anew at the farthest vector."""
    sums = torch.zeros((n_clusters, vectors.shape[1]), dtype=torch.float32, device=vectors.device)
    sums.index_add_(0, labels, vectors)
    lengths = sums.norm(dim=1, keepdim=True)
    lost = (lengths[:, 0] < SAME).nonzero()[:, 0]  # no vectors, or opposite ones
    if len(lost):
        farthest = cosines.argsort()[: len(lost)]
        sums[lost[: len(farthest)]] = vectors[farthest]
        lengths = sums.norm(dim=1, keepdim=True)
    means: torch.Tensor = sums / lengths
    return means
