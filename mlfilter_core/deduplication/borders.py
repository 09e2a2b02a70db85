"""The cells that a document is compared in: its own, and others whose border is near.

Let x be in cell a, y in cell b, and their cosine at least t, so that they are at most d = sqrt(2 - 2 t) apart.
The straight line between them crosses the border of a and b, so the distances of x and y from that border add up to at
most d, and one of the two is at most d / 2 from it. If each document visits the cells whose border is that near, no
pair is missed. `neighbours` bounds how many it visits, and so pairs may be missed.
"""

import math

import torch

from mlfilter_core.clustering.spherical_k_means import blocks

HOMELESS = -1  # cell of an embedding of zeros
ROUNDING = 1e-6  # of a cosine in float32


def visits(
    vectors: torch.Tensor, cells: torch.Tensor, threshold: float, neighbours: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns the cell of each vector, and the other cells that it visits.

    Args:
        vectors: float32 (n, dim), of unit length, or zeros.
        cells: Their centres, float32 (m, dim), of unit length.
        threshold: Lowest cosine of duplicates.
        neighbours: Most cells that a vector visits.

    Returns:
        Cell of each vector, int64 (n,), `HOMELESS` for zeros; then for each visit, ordered by vector, the place of
        the vector and the cell, int64 (n_visits,) each.
    """
    n_nearest = min(1 + neighbours, len(cells))
    reach = math.sqrt(max(0.0, 2 - 2 * threshold)) / 2 + ROUNDING
    homes = torch.empty(len(vectors), dtype=torch.int64, device=vectors.device)
    found = []
    for rows in blocks(len(vectors), len(cells)):
        cosines, nearest = (vectors[rows] @ cells.T).topk(n_nearest, dim=1)
        homes[rows] = nearest[:, 0]
        between = (2 - 2 * _between(cells, nearest)).clamp(min=0).sqrt()
        is_visit = cosines[:, :1] - cosines <= reach * between
        is_visit[:, 0] = False
        is_visit &= vectors[rows].any(dim=1)[:, None]
        visitors, places = is_visit.nonzero(as_tuple=True)
        found.append((visitors + rows.start, nearest[visitors, places]))
    homes[~vectors.any(dim=1)] = HOMELESS
    of, visited = (torch.cat(each) for each in zip(*found, strict=True)) if found else (homes, homes)
    return homes, of, visited


def _between(cells: torch.Tensor, nearest: torch.Tensor) -> torch.Tensor:
    """Returns the cosine of the first cell of each row with each of the row, float32 (n, k)."""
    if len(cells) > len(nearest):
        cosines: torch.Tensor = torch.linalg.vecdot(cells[nearest[:, :1]], cells[nearest])
        return cosines
    own, which = torch.unique(nearest[:, 0], return_inverse=True)
    return (cells[own] @ cells.T)[which[:, None], nearest]
