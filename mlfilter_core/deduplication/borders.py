"""The clusters that a document is compared in: its own, and others whose border is near.

Let x be in cluster a, y in cluster b, and their cosine at least t, so that they are at most d = sqrt(2 - 2 t) apart.
The straight line between them crosses the border of a and b, so the distances of x and y from that border add up to at
most d, and one of the two is at most d / 2 from it. If each document visits the clusters whose border is that near, no
pair is missed. `neighbours` bounds how many it visits, and so pairs may be missed.
"""

import math

import torch

from mlfilter_core.clustering.spherical_k_means import blocks

HOMELESS = -1  # cluster of an embedding of zeros
ROUNDING = 1e-6  # of a cosine in float32


def visits(
    vectors: torch.Tensor, centroids: torch.Tensor, threshold: float, neighbours: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns the cluster of each vector, and the other clusters that it visits.

    Args:
        vectors: float32 (n, dim), of unit length, or zeros.
        centroids: float32 (k, dim), of unit length.
        threshold: Lowest cosine of duplicates.
        neighbours: Most clusters that a vector visits.

    Returns:
        Cluster of each vector, int64 (n,), `HOMELESS` for zeros; then for each visit, ordered by vector, the place of
        the vector and the cluster, int64 (n_visits,) each.
    """
    n_nearest = min(1 + neighbours, len(centroids))
    reach = math.sqrt(max(0.0, 2 - 2 * threshold)) / 2 + ROUNDING
    homes = torch.empty(len(vectors), dtype=torch.int64, device=vectors.device)
    found = []
    for rows in blocks(len(vectors), len(centroids)):
        cosines, nearest = (vectors[rows] @ centroids.T).topk(n_nearest, dim=1)
        homes[rows] = nearest[:, 0]
        own, which = torch.unique(nearest[:, 0], return_inverse=True)
        between = (2 - 2 * (centroids[own] @ centroids.T)).clamp(min=0).sqrt()[which[:, None], nearest]
        is_visit = cosines[:, :1] - cosines <= reach * between
        is_visit[:, 0] = False
        is_visit &= vectors[rows].any(dim=1)[:, None]
        visitors, places = is_visit.nonzero(as_tuple=True)
        found.append((visitors + rows.start, nearest[visitors, places]))
    homes[~vectors.any(dim=1)] = HOMELESS
    of, clusters = (torch.cat(each) for each in zip(*found, strict=True)) if found else (homes, homes)
    return homes, of, clusters
