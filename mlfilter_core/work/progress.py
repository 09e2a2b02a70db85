"""The progress of a file, reported to a listener.

Knows nothing about the listener: on a worker it forwards to the flow; in a notebook there is none.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

# People do not look more often. A GPU processes about a hundred batches in that time.
TELL_S = 1.0


@dataclass(frozen=True)
class Progress:
    """The progress of one file.

    Attributes:
        file: Path relative to its folder.
        documents: Number of processed documents.
        tokens: Number of encoded tokens.
        rejected: Number of rejected lines.
        committed: Number of documents in the checkpoint, which survive a crash of this process.
        share: Approximate share of the file that is done, from 0 to 1.
        waited: Seconds that each stage waited for another.
        max_batch_tokens: Most tokens in a batch; 0 where there are no tokens.
        out_of_memory: Number of batches that did not fit in memory.
        gpu_memory_bytes: Bytes that PyTorch has allocated on the GPU; 0 without one.
    """

    file: str
    documents: int = 0
    tokens: int = 0
    rejected: int = 0
    committed: int = 0
    share: float = 0.0
    waited: Mapping[str, float] = field(default_factory=dict)
    max_batch_tokens: int = 0
    out_of_memory: int = 0
    gpu_memory_bytes: int = 0


Listener = Callable[[Progress], None]

_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


@contextmanager
def heard_by(listener: Listener) -> Iterator[None]:
    """Calls `listener` in the block, about every `TELL_S` seconds per file, and whenever documents were committed."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


class ProgressTeller:
    """Reports the progress of one file to the listener of the current context."""

    def __init__(self) -> None:
        self._listener = _listener.get()
        self._told_at = time.monotonic()
        self._committed = 0

    def is_due(self, committed: int = 0) -> bool:
        """Returns whether a report is due; callers need not prepare one otherwise."""
        if self._listener is None:
            return False
        return committed > self._committed or time.monotonic() - self._told_at >= TELL_S

    def tell(self, progress: Progress) -> None:
        """Reports progress to the listener, if there is one."""
        if self._listener is not None:
            self._told_at, self._committed = time.monotonic(), progress.committed
            self._listener(progress)
