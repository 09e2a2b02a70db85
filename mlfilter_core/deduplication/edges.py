"""Edges between places, and the forest of those that connect them best.

Of all pairs above the threshold, those are kept that a maximum spanning forest needs: fewer than there are places,
although a page that is copied 10,000 times alone has 50 million pairs. They connect the same places as all pairs do,
at the threshold and at every higher one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

MOST_EDGES = 1 << 18  # that are collected before those are dropped that connect nothing
ROUNDING = 1e-6  # of a cosine in float32


@dataclass
class Edges:
    """Pairs of similar vectors.

    Attributes:
        first: Places of the one, int64 (n,).
        second: Places of the other, int64 (n,).
        cosines: float32 (n,).
    """

    first: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    second: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    cosines: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))

    def __len__(self) -> int:
        return len(self.cosines)

    def __getitem__(self, which: NDArray[np.generic] | slice) -> "Edges":
        return Edges(self.first[which], self.second[which], self.cosines[which])


def joined(edges: Sequence[Edges]) -> Edges:
    """Returns all edges of several."""
    parts = [Edges(), *edges]
    return Edges(
        np.concatenate([each.first for each in parts]),
        np.concatenate([each.second for each in parts]),
        np.concatenate([each.cosines for each in parts]),
    )


def components(edges: Edges, n: int) -> NDArray[np.int32]:
    """Returns the number of the connected component of each of n places, int32 (n,)."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(edges), np.int8), (edges.first, edges.second)), (n, n))
    return np.asarray(connected_components(graph, directed=False)[1], np.int32)


def spanning_forest(edges: Edges, n: int) -> Edges:
    """Returns the edges of a maximum spanning forest: those with the highest cosines that connect the same places.

    Args:
        edges: Edges between n places.
        n: Number of places.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import minimum_spanning_tree

    if not len(edges):
        return edges
    # Of several edges between two places the best one: scipy would add their weights up.
    edges = edges[np.argsort(-edges.cosines, kind="stable")]
    first, second = np.minimum(edges.first, edges.second), np.maximum(edges.first, edges.second)
    _, best = np.unique(first * n + second, return_index=True)
    # Distances above 0, as scipy takes 0 for no edge.
    weights = 3 - edges.cosines[best].astype(np.float64)
    forest = minimum_spanning_tree(coo_array((weights, (first[best], second[best])), (n, n)).tocsr()).tocoo()
    row, column = forest.coords
    return Edges(row.astype(np.int64), column.astype(np.int64), (3 - forest.data).astype(np.float32))


class Forest:
    """The edges that are found, reduced to a maximum spanning forest whenever they become many."""

    def __init__(self, n: int, levels: Sequence[float]) -> None:
        """Takes the number of places, and the thresholds, ascending, at which components must be exact."""
        self._n = n
        self._levels = np.array(levels, np.float32)
        self._kept: list[Edges] = []
        self._n_edges = 0
        self._reduce_at = MOST_EDGES
        self._components: NDArray[np.int32] | None = None  # (levels, n), once there were many edges

    def add(self, edges: Edges) -> None:
        """Adds edges with cosines of at least the lowest level."""
        if self._components is not None:
            level = np.searchsorted(self._levels, edges.cosines + ROUNDING, side="right") - 1
            of = self._components
            edges = edges[of[level, edges.first] != of[level, edges.second]]
        if not len(edges):
            return
        self._kept.append(edges)
        self._n_edges += len(edges)
        if self._n_edges >= self._reduce_at:
            forest = self.edges()
            self._kept, self._n_edges = [forest], len(forest)
            self._reduce_at = self._n_edges + MOST_EDGES
            self._components = np.stack(
                [components(forest[forest.cosines >= level - ROUNDING], self._n) for level in self._levels]
            )

    @property
    def connected(self) -> NDArray[np.int32] | None:
        """Component of each place at the highest threshold, int32 (n,), as far as it is known; None at first."""
        return None if self._components is None else self._components[-1]

    def edges(self) -> Edges:
        """Returns the forest."""
        return spanning_forest(joined(self._kept), self._n)
