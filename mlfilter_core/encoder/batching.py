"""Token counts to batches: documents of similar length together, in batches of the size that is fastest here.

Knows nothing about tensors or models.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Sizes in tokens, tried by doubling. CPUs are fastest with small batches, which fit their caches, GPUs with large ones.
SMALLEST, LARGEST = 512, 1 << 18
UNTRIED = 2048  # without a trial; a good size for many encoders on CPUs
# Shares of the highest speed. The smallest batch size that is about as fast is chosen; none larger than one that is
# clearly slower is tried.
ABOUT_AS_FAST = 0.98
CLEARLY_SLOWER = 0.9
TRIALS_S = 3.0
PASSES = 3


def plan_batches(
    n_tokens: NDArray[np.int32],
    max_batch_documents: int | None,
    max_batch_tokens: int,
    kinds: NDArray[Any] | None = None,
) -> list[NDArray[np.intp]]:
    """Groups documents of similar length, the longest first.

    A batch that does not fit in memory is then found at once.

    Args:
        n_tokens: int32 (n_documents,), tokens of each document.
        max_batch_documents: Most documents in a batch; None sets no limit.
        max_batch_tokens: Most tokens in a batch, padded to its longest document. A longer document
            is a separate batch.
        kinds: (n_documents,), a property of each document that depends on its number of tokens; those of a batch share
            it. None sets no condition.

    Returns:
        Row numbers of each batch; each row is in one batch.

    Example: lengths `[2, 5, 1, 4]` and at most 8 tokens give `[[1], [3, 0], [2]]`.
    """
    order = np.argsort(-n_tokens, kind="stable")
    batches = []
    start = 0
    while start < len(order):
        longest = max(int(n_tokens[order[start]]), 1)
        size = min(max(max_batch_tokens // longest, 1), max_batch_documents or len(order))
        batch = order[start : start + size]
        if kinds is not None:
            batch = batch[kinds[batch] == kinds[batch[0]]]
        batches.append(batch)
        start += len(batch)
    return batches


def find_max_batch_tokens(encode: Callable[[int], int | None]) -> tuple[int, str]:
    """Times batches of growing size, for a few seconds at most.

    Several passes over the sizes, of which the best time counts: other work on the machine slows some trials down.

    Args:
        encode: Encodes about this number of tokens and waits for the result. Returns their exact number, or None if
            they do not fit in memory.

    Returns:
        The smallest of the fastest sizes, and what was measured, as text. It is less than `UNTRIED` only where that
        does not fit, or was tried twice and is slower.
    """
    rates: dict[int, list[float]] = {}
    best: dict[int, float] = {}
    most = LARGEST
    deadline = time.perf_counter() + TRIALS_S
    for _ in range(PASSES):
        size = SMALLEST
        while size <= most and time.perf_counter() < deadline:
            rate = _tokens_per_s(encode, size)
            if rate == 0.0:
                most = size // 2
                break
            rates.setdefault(size, []).append(rate)
            best[size] = max(rates[size])
            is_slower = best[size] < CLEARLY_SLOWER * max(rate for tried, rate in best.items() if tried <= size)
            if is_slower and size >= UNTRIED:
                break
            size *= 2
    best = {size: rate for size, rate in best.items() if size <= most}  # another pass may have found less memory
    if not best:
        return SMALLEST, "the smallest size tried; even that does not fit in memory"
    chosen = min(size for size, rate in best.items() if rate >= ABOUT_AS_FAST * max(best.values()))
    tried = ", ".join(f"{size}: {rate:.0f}" for size, rate in best.items())
    if chosen < UNTRIED <= most and len(rates.get(UNTRIED, ())) < 2:
        return UNTRIED, f"as time did not suffice for a trial; tokens/s by size: {tried}"
    return chosen, f"the smallest of the fastest; tokens/s by size: {tried}"


def _tokens_per_s(encode: Callable[[int], int | None], n_tokens: int) -> float:
    """Returns the rate of one trial; 0 where the tokens do not fit in memory."""
    started = time.perf_counter()
    return (encode(n_tokens) or 0) / (time.perf_counter() - started)
