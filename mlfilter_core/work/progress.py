"""How far the work on a file has come, told to whoever listens.

Knows nothing about who that is: a worker, which tells the flow; in a notebook, nobody.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

# A person looks no more often; a GPU takes a hundred batches in that time.
TELL_S = 1.0


@dataclass(frozen=True)
class Progress:
    """How far one file has come.

    Attributes:
        file: Its name, relative to its folder.
        documents: Done.
        tokens: Encoded.
        rejected: Lines that are no documents.
        committed: Documents that nobody has to do again, whatever happens to this process.
        share: Of the file that is done, about, from 0 to 1.
        waited: Seconds that each stage waited for another.
        max_batch_tokens: Most tokens in a batch; 0 where there are none.
        out_of_memory: How often a batch did not fit in memory.
        gpu_memory_bytes: That PyTorch holds on the GPU; 0 without one.
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
    """Calls `listener` in the block, about once in `TELL_S` for a file, and whenever documents were committed."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


class ProgressTeller:
    """Tells the progress of one file to the listener of the context it is made in."""

    def __init__(self) -> None:
        self._listener = _listener.get()
        self._told_at = time.monotonic()
        self._committed = 0

    def is_due(self, committed: int = 0) -> bool:
        """Tells whether anybody wants to hear now, so that nothing is counted up for nobody."""
        if self._listener is None:
            return False
        return committed > self._committed or time.monotonic() - self._told_at >= TELL_S

    def tell(self, progress: Progress) -> None:
        """Tells it."""
        if self._listener is not None:
            self._told_at, self._committed = time.monotonic(), progress.committed
            self._listener(progress)
