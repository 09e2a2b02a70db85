"""Pairs of duplicates to groups: which document is kept, and by which pairs the others are connected to it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlfilter_core.deduplication.edges import Edges, components


@dataclass(frozen=True)
class Groups:
    """The documents that have duplicates, in ascending order of rows.

    Attributes:
        rows: Rows over all files, int64 (n,).
        kept: Row of the document that is kept of the group of each, int64 (n,).
        near: Row of the document that each is a duplicate of, on the shortest way to the kept one, int64 (n,); its own
            row for a kept one.
        cosines: Cosine of that pair, float32 (n,); 0 for a kept one.
    """

    rows: NDArray[np.int64]
    kept: NDArray[np.int64]
    near: NDArray[np.int64]
    cosines: NDArray[np.float32]

    @property
    def is_duplicate(self) -> NDArray[np.bool_]:
        """Which of them are not kept, bool (n,)."""
        return np.asarray(self.rows != self.kept)

    def largest(self, n: int) -> list[tuple[int, NDArray[np.int64]]]:
        """Returns the kept row and the places of all documents of the largest groups, the largest first."""
        order = np.argsort(self.kept, kind="stable")
        kept, starts, sizes = np.unique(self.kept[order], return_index=True, return_counts=True)
        chosen = np.argsort(-sizes, kind="stable")[:n]
        return [(int(kept[i]), order[starts[i] : starts[i] + sizes[i]]) for i in chosen.tolist()]


def documents_in(edges: Edges) -> NDArray[np.int64]:
    """Returns the rows that have a duplicate, ascending."""
    return np.unique(np.concatenate([edges.first, edges.second]))


def groups_of(edges: Edges, values: NDArray[np.float64]) -> Groups:
    """Returns the groups that pairs connect, exactly: a chain of pairs is one group.

    Args:
        edges: Pairs of rows.
        values: Value of each of `documents_in(edges)`, float64 (n,): the highest of a group is kept, of equal ones the
            first.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import breadth_first_order

    rows = documents_in(edges)
    n = len(rows)
    first, second = np.searchsorted(rows, edges.first), np.searchsorted(rows, edges.second)
    component = components(Edges(first, second, edges.cosines), n)
    order = np.lexsort((rows, -values, component))
    is_first = np.ones(n, bool)
    is_first[1:] = component[order][1:] != component[order][:-1]
    best = np.empty(int(component.max(initial=-1)) + 1, np.int64)
    best[component[order[is_first]]] = order[is_first]
    kept = best[component]
    # One more place, which is connected to each kept document, is where the search for shortest ways begins.
    ends = np.concatenate([second, best])
    begins = np.append(first, np.full(len(best), n))
    graph = coo_array((np.ones(len(begins), np.int8), (begins, ends)), (n + 1, n + 1))
    _, before = breadth_first_order(graph.tocsr(), n, directed=False)
    near = np.where(kept == np.arange(n), np.arange(n), before[:n])
    return Groups(rows, rows[kept], rows[near], _cosines(first, second, edges.cosines, near))


def _cosines(
    first: NDArray[np.int64], second: NDArray[np.int64], cosines: NDArray[np.float32], near: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Returns the highest cosine of each place and the one near it, float32 (n,); 0 where that is itself."""
    n = len(near)
    low, high = np.minimum(first, second), np.maximum(first, second)
    keys = low * n + high
    order = np.lexsort((-cosines, keys))
    keys, cosines = keys[order], cosines[order]
    asked = np.minimum(np.arange(n), near) * n + np.maximum(np.arange(n), near)
    places = np.minimum(np.searchsorted(keys, asked), max(0, len(keys) - 1))
    return np.where(near == np.arange(n), np.float32(0), cosines[places]) if n else np.empty(0, np.float32)
