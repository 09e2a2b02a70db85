"""Bounds of cosines from few dimensions, so that most pairs need no product of whole vectors.

Let the columns of Q be orthonormal. Of a vector x, they keep p = Q^T x, and r is the length of the rest. By Cauchy and
Schwarz, x y <= p_x p_y + r_x r_y: the product of (p_x, r_x) and (p_y, r_y) is at least the cosine of x and y, and where
it is below the threshold, they are no duplicates. The more of the vectors Q keeps, the closer is the bound; so its
columns are the principal directions of some of them.
"""

from dataclasses import dataclass

import torch

from mlfilter_core.deduplication.edges import ROUNDING
from mlfilter_core.files.task_files import evenly_spaced

SAMPLED = 1024  # vectors that the directions are found from
TRIED = 256  # vectors whose pairs with as many others tell how many pairs a bound leaves
SHARES = (16, 12, 8, 6, 4, 3, 2)  # tried: short vectors with one of so many dimensions
# Times as long as in a product of matrices, the product of two vectors takes that have to be gathered: some 70 in a
# thread of an EPYC.
GATHERING = 70
WORTHWHILE = 0.8  # of the time without bounds; arbitrary
BOUND_ROUNDING = 4 * ROUNDING  # of a bound in float32


@dataclass(frozen=True)
class BoundedVectors:
    """Vectors, and short ones whose products are bounds of their cosines.

    Attributes:
        vectors: float32 (n, dim), of unit length.
        short: float32 (n, k + 1); `vectors` where these are compared at once.
    """

    vectors: torch.Tensor
    short: torch.Tensor

    @property
    def is_short(self) -> bool:
        return self.short is not self.vectors

    def __len__(self) -> int:
        return len(self.vectors)

    def __getitem__(self, rows: slice | torch.Tensor) -> "BoundedVectors":
        vectors = self.vectors[rows]
        return BoundedVectors(vectors, self.short[rows] if self.is_short else vectors)


def bounded(vectors: torch.Tensor, directions: torch.Tensor | None = None) -> BoundedVectors:
    """Returns vectors with short ones.

    Args:
        vectors: float32 (n, dim), of unit length.
        directions: float32 (dim, k), orthonormal; None to compare the vectors at once.
    """
    if directions is None:
        return BoundedVectors(vectors, vectors)
    kept = vectors @ directions
    # Larger than the true one by more than the rounding of the sum: a bound may not be too small.
    rest = (1 - kept.square().sum(dim=1)).clamp(min=0).add(BOUND_ROUNDING).sqrt()
    return BoundedVectors(vectors, torch.cat([kept, rest[:, None]], dim=1))


def find_directions(
    vectors: torch.Tensor, some: torch.Tensor, others: torch.Tensor, threshold: float
) -> torch.Tensor | None:
    """Returns as many principal directions of vectors as save most time; None where none do.

    Args:
        vectors: float32 (n, dim), of unit length.
        some: float32 (m, dim), those of them whose comparison is to be fast.
        others: float32 (l, dim), those that these are compared with.
        threshold: Lowest cosine that is looked for.

    Returns:
        float32 (dim, k), orthonormal.
    """
    dim = vectors.shape[1]
    # Of so few, or so short ones, all products take less time than this; the directions would fit the sample alone.
    if len(vectors) < 2 * SAMPLED or dim < SHARES[0]:
        return None
    sample = _some_of(vectors, SAMPLED)
    directions = _principal_directions(sample)
    rows, columns = _some_of(others, TRIED), _some_of(some, TRIED)
    is_other = rows @ columns.T < threshold
    costs = dict[int, float]()
    for k in (dim // share for share in SHARES):
        one, other = (bounded(each, directions[:, : k - 1]).short for each in (rows, columns))
        left = float(((one @ other.T >= threshold) & is_other).float().mean())
        costs[k] = k / dim + min(1.0, GATHERING * left)
    best = min(costs, key=costs.__getitem__)
    return directions[:, : best - 1].contiguous() if costs[best] < WORTHWHILE else None


def _principal_directions(vectors: torch.Tensor) -> torch.Tensor:
    """Returns directions, float32 (dim, k), those of the largest variance first.

    One thread computes them: the last bits of LAPACK's depend on the number of threads, and outputs must not.
    """
    own = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        directions: torch.Tensor = torch.linalg.svd(vectors, full_matrices=False).Vh.T
    finally:
        torch.set_num_threads(own)
    return directions


def _some_of(vectors: torch.Tensor, most: int) -> torch.Tensor:
    return vectors[evenly_spaced(range(len(vectors)), most)]
