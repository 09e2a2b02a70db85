"""Tells whoever runs the core how far it has come.

Knows nothing about who listens: a worker, which tells the flow; in a notebook, nobody.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_listener: ContextVar[Callable[[int], None] | None] = ContextVar("listener", default=None)


@contextmanager
def heard_by(listener: Callable[[int], None]) -> Iterator[None]:
    """Calls `listener` with the number of documents whenever some are finished for good, in the block."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def tell_progress(n_documents: int) -> None:
    """Says that documents are finished which nobody has to do again."""
    listener = _listener.get()
    if listener is not None:
        listener(n_documents)
