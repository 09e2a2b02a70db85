"""The scores of a document's chunks as the score of the document.

Knows nothing about heads.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

CHUNKS_SUFFIX = "_chunks"


@dataclass(frozen=True)
class ChunkCombination:
    """How to combine the scores of chunks.

    Attributes:
        way: `mean`, `max`, `top_k_mean` (the mean of the highest), or `first`.
        top_k: Number of scores of `top_k_mean`; a document with fewer chunks takes all.
    """

    way: Literal["mean", "max", "top_k_mean", "first"] = "mean"
    top_k: int = 3

    def provenance(self) -> dict[str, Any]:
        """Returns what differs from the default, which files of earlier releases have."""
        if self.way == DEFAULT.way:
            return {}
        return {"score_combine": self.way, **({"score_top_k": self.top_k} if self.way == "top_k_mean" else {})}

    def combine(self, scores: NDArray[np.float32], starts: NDArray[np.int64]) -> NDArray[np.float32]:
        """Returns float32 (n_documents,), computed in float64.

        Args:
            scores: float32 (n_chunks,), finite.
            starts: int64 (n_documents,), ascending: place of the first chunk of each document, which has one at least.

        Example: of the scores 1, 5, 2, 4 of two documents that start at 0 and 3, the means are 8/3 and 4.
        """
        if len(starts) == len(scores) or self.way == "first":
            return scores[starts]
        if self.way == "max":
            return np.maximum.reduceat(scores, starts)
        wide, n_chunks = scores.astype(np.float64), np.diff(starts, append=len(scores))
        if self.way == "top_k_mean":
            document = np.repeat(np.arange(len(starts)), n_chunks)
            wide = wide[np.lexsort((-wide, document))]
            wide[np.arange(len(wide)) - np.repeat(starts, n_chunks) >= self.top_k] = 0
            n_chunks = np.minimum(n_chunks, self.top_k)
        return np.asarray(np.add.reduceat(wide, starts) / n_chunks, np.float32)


DEFAULT = ChunkCombination()


def by_document(scores: NDArray[np.float32], starts: NDArray[np.int64]) -> list[NDArray[np.float32]]:
    """Returns the scores of each document's chunks; arguments as in `ChunkCombination.combine`."""
    return np.split(np.ascontiguousarray(scores), starts[1:]) if len(starts) else []
