"""Token counts to batches that waste little on padding.

Knows nothing about tensors or models.
"""

import numpy as np
from numpy.typing import NDArray


def plan_batches(
    n_tokens: NDArray[np.int32], max_batch_documents: int, max_batch_tokens: int
) -> list[NDArray[np.intp]]:
    """Groups documents of about equal length, the longest first.

    The longest come first so that a batch that does not fit in memory shows at once.

    Args:
        n_tokens: int32 (n_documents,), tokens of each document.
        max_batch_documents: Most documents in a batch.
        max_batch_tokens: Most tokens in a batch once it is padded to its longest document. A
            document above it makes a batch of its own.

    Returns:
        Row numbers of each batch; together each row once.

    Example: lengths `[2, 5, 1, 4]` within 8 tokens give `[[1], [3, 0], [2]]`.
    """
    order = np.argsort(-n_tokens, kind="stable")
    batches = []
    start = 0
    while start < len(order):
        longest = max(int(n_tokens[order[start]]), 1)
        size = min(max(max_batch_tokens // longest, 1), max_batch_documents)
        batches.append(order[start : start + size])
        start += size
    return batches
