"""Pairs of similar vectors, by the product of all with all."""

from collections.abc import Callable, Iterator

import torch

from mlfilter_core.deduplication.edges import ROUNDING, Edges

BLOCK_COSINES = 1 << 21  # cosines in memory at a time
FIRST_COSINES = 1 << 20  # of the first blocks: what they connect, the later ones need not find again

# Returns which vectors and others are known to be connected, as equal numbers, int32 (n,) and (m,); None for none.
Connected = Callable[[], tuple[torch.Tensor, torch.Tensor] | None]


def similar_within(vectors: torch.Tensor, threshold: float, connected: Connected = lambda: None) -> Iterator[Edges]:
    """Yields the pairs of vectors whose cosine is at least the threshold, the first place below the second.

    Args:
        vectors: float32 (n, dim), of unit length.
        threshold: Lowest cosine.
        connected: Called for each block of pairs; those that are connected are left out.
    """
    for rows in _blocks(len(vectors), len(vectors), is_triangle=True):
        cosines = vectors[rows] @ vectors[rows.start :].T
        n = rows.stop - rows.start
        itself_or_before = torch.ones((n, n), dtype=torch.bool, device=vectors.device).tril()
        cosines[:, :n].masked_fill_(itself_or_before, -2)
        known = connected()
        labels = None if known is None else (known[0][rows], known[1][rows.start :])
        yield _at_least(cosines, threshold, rows.start, rows.start, labels)


def similar_between(
    vectors: torch.Tensor, others: torch.Tensor, threshold: float, connected: Connected = lambda: None
) -> Iterator[Edges]:
    """Yields the pairs of a vector and another one whose cosine is at least the threshold.

    Args:
        vectors: float32 (n, dim), of unit length.
        others: float32 (m, dim), of unit length.
        threshold: Lowest cosine.
        connected: Called for each block of pairs; those that are connected are left out.
    """
    for rows in _blocks(len(vectors), len(others)):
        known = connected()
        labels = None if known is None else (known[0][rows], known[1])
        yield _at_least(vectors[rows] @ others.T, threshold, rows.start, 0, labels)


def similar_unless(
    vectors: torch.Tensor, others: torch.Tensor, threshold: float, excluded: torch.Tensor, kinds: torch.Tensor
) -> Iterator[tuple[int, Edges]]:
    """Yields the number of pairs whose cosine is at least the threshold, and those of them that are not excluded.

    Args:
        vectors: float32 (n, dim), of unit length.
        others: float32 (m, dim), of unit length.
        threshold: Lowest cosine.
        excluded: Whether pairs of a vector and another one of a kind are excluded, bool (n, n_kinds).
        kinds: Kind of each of the others, int64 (m,).
    """
    for rows in _blocks(len(vectors), len(others)):
        is_pair = vectors[rows] @ others.T >= threshold - ROUNDING
        n_pairs = int(is_pair.sum())
        if n_pairs:
            is_pair &= ~excluded[rows][:, kinds]
        first, second = is_pair.nonzero(as_tuple=True)
        cosines = torch.zeros(len(first))
        yield n_pairs, Edges((first + rows.start).cpu().numpy(), second.cpu().numpy(), cosines.numpy())


def _blocks(n_rows: int, n_columns: int, is_triangle: bool = False) -> Iterator[slice]:
    """Yields slices of rows, short ones first, whose cosines with all columns fit in memory."""
    start = 0
    while start < n_rows and n_columns:
        n_fitting = BLOCK_COSINES // (n_columns - start if is_triangle else n_columns)
        stop = min(n_rows, start + max(1, min(n_fitting, max(FIRST_COSINES // n_columns, start))))
        yield slice(start, stop)
        start = stop


def _at_least(
    cosines: torch.Tensor,
    threshold: float,
    first: int,
    second: int,
    labels: tuple[torch.Tensor, torch.Tensor] | None,
) -> Edges:
    least = threshold - ROUNDING
    # The largest of each row is found at the speed of memory, and few rows have one that is large enough.
    rows = (cosines.amax(dim=1) >= least).nonzero()[:, 0]
    if not len(rows):
        return Edges()
    some = cosines[rows]
    is_pair = some >= least
    if labels is not None:
        is_pair &= labels[0][rows][:, None] != labels[1][None, :]
    row, column = is_pair.nonzero(as_tuple=True)
    return Edges(
        (rows[row] + first).cpu().numpy(), (column + second).cpu().numpy(), some[row, column].float().cpu().numpy()
    )
