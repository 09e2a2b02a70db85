"""Pairs of similar vectors, by the product of all with all."""

from collections.abc import Callable, Iterator

import torch

from mlfilter_core.deduplication.bounds import BOUND_ROUNDING, GATHERING, BoundedVectors
from mlfilter_core.deduplication.edges import ROUNDING, Edges

# Cosines, and numbers of gathered vectors, at a time: so few that they stay in a processor's cache until they are used;
# enough to keep a GPU busy.
BLOCK_COSINES, GATHERED = 1 << 19, 1 << 18
GPU_BLOCK_COSINES, GPU_GATHERED = 1 << 25, 1 << 26

# Returns which vectors and others are known to be connected, as equal numbers, int32 (n,) and (m,); None for none.
Connected = Callable[[], tuple[torch.Tensor, torch.Tensor] | None]
Pairs = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # places of the ones and the others, int64; cosines, float32


def similar_within(vectors: BoundedVectors, threshold: float, connected: Connected = lambda: None) -> Iterator[Edges]:
    """Yields the pairs of vectors whose cosine is at least the threshold, the first place below the second.

    Args:
        vectors: n vectors.
        threshold: Lowest cosine.
        connected: Called for each block of pairs; those that are connected are left out.
    """
    for rows in _blocks(vectors, vectors, is_triangle=True):
        some, others = vectors[rows], vectors[rows.start :]
        bounds = some.short @ others.short.T
        n = len(some)
        itself_or_before = torch.ones((n, n), dtype=torch.bool, device=bounds.device).tril()
        bounds[:, :n].masked_fill_(itself_or_before, -2)
        known = connected()
        labels = None if known is None else (known[0][rows], known[1][rows.start :])
        yield _edges(_at_least(bounds, some, others, threshold, labels), rows.start, rows.start)


def similar_between(
    vectors: BoundedVectors, others: BoundedVectors, threshold: float, connected: Connected = lambda: None
) -> Iterator[Edges]:
    """Yields the pairs of a vector and another one whose cosine is at least the threshold.

    Args:
        vectors: n vectors.
        others: m vectors, with bounds from the same directions.
        threshold: Lowest cosine.
        connected: Called for each block of pairs; those that are connected are left out.
    """
    for rows in _blocks(vectors, others):
        some, known = vectors[rows], connected()
        labels = None if known is None else (known[0][rows], known[1])
        yield _edges(_at_least(some.short @ others.short.T, some, others, threshold, labels), rows.start)


def _blocks(vectors: BoundedVectors, others: BoundedVectors, is_triangle: bool = False) -> Iterator[slice]:
    """Yields slices of vectors whose cosines with all others are a block; in a triangle, with those from them on."""
    most = BLOCK_COSINES if vectors.short.is_cpu else GPU_BLOCK_COSINES
    start = 0
    while start < len(vectors) and len(others):
        n_others = len(others) - start if is_triangle else len(others)
        stop = min(len(vectors), start + max(1, most // n_others))
        yield slice(start, stop)
        start = stop


def _at_least(
    bounds: torch.Tensor,
    vectors: BoundedVectors,
    others: BoundedVectors,
    threshold: float,
    labels: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> Pairs:
    """Returns the pairs whose cosine is at least the threshold, given bounds of all, (n, m)."""
    least = threshold - ROUNDING
    lowest = least - BOUND_ROUNDING if vectors.is_short else least
    # The largest of each row is found at the speed of memory, and few rows have one that is large enough.
    rows = (bounds.amax(dim=1) >= lowest).nonzero()[:, 0]
    some = bounds[rows]
    is_pair = some >= lowest
    if labels is not None:
        is_pair &= labels[0][rows][:, None] != labels[1][None, :]
    row, second = is_pair.nonzero(as_tuple=True)
    first = rows[row]
    if not vectors.is_short:
        return first, second, some[row, second]
    if GATHERING * len(row) > is_pair.numel():
        cosines = (vectors.vectors[rows] @ others.vectors.T)[row, second]
    else:
        cosines = _cosines(vectors.vectors, first, others.vectors, second)
    is_pair = cosines >= least
    return first[is_pair], second[is_pair], cosines[is_pair]


def _cosines(vectors: torch.Tensor, first: torch.Tensor, others: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Returns the cosine of each pair of a vector and another one, float32 (n_pairs,)."""
    at_a_time = max(1, (GATHERED if vectors.is_cpu else GPU_GATHERED) // vectors.shape[1])
    parts = zip(torch.split(first, at_a_time), torch.split(second, at_a_time), strict=True)
    return torch.cat([torch.linalg.vecdot(vectors[one], others[other]) for one, other in parts])


def _edges(pairs: Pairs, first: int, second: int = 0) -> Edges:
    """Returns pairs as edges, given the places of the first vector and of the first other one."""
    one, other, cosines = pairs
    return Edges((one + first).cpu().numpy(), (other + second).cpu().numpy(), cosines.cpu().numpy())
