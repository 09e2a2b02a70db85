"""Stages of a pipeline that run at the same time, with a bounded queue between one and the next.

Knows nothing about what they do.
"""

import contextvars
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")

QUEUED_ITEMS = 1  # enough for both sides to go on while the other is busy with one


class Stages:
    """Runs iterators ahead of their consumers, each in a thread of its own. Use it as a context manager.

    On leaving, every thread is stopped at its next item and has ended, whether or not all was consumed.

    Example:
        with Stages() as stages:
            numbers = stages.run("count", range(9))
            for square in stages.run("square", (n * n for n in numbers)):
                print(square)
    """

    def __init__(self) -> None:
        self._names: list[str] = []
        self._queues: list[_Queue[Any]] = []
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> "Stages":
        return self

    def __exit__(self, *exc_info: object) -> None:
        for queue in self._queues:
            queue.stop()
        for thread in self._threads:
            thread.join()

    def run(self, name: str, items: Iterable[Item]) -> Iterator[Item]:
        """Starts a stage and yields its items in order; raises what it raises, after the items before that."""
        queue: _Queue[Item] = _Queue()
        # In the caller's context: log records find the run that they belong to.
        context = contextvars.copy_context()
        thread = threading.Thread(target=context.run, args=(_fill, queue, items), name=name, daemon=True)
        self._names.append(name)
        self._queues.append(queue)
        self._threads.append(thread)
        thread.start()
        return iter(queue)

    def waited(self, last: str) -> dict[str, float]:
        """Returns the seconds that each stage waited for the one before or after it: the least busy waits most.

        Args:
            last: Name of what consumes the last stage's items.
        """
        waited = dict.fromkeys((*self._names, last), 0.0)
        for name, queue, after in zip(self._names, self._queues, (*self._names, last)[1:], strict=True):
            waited[name] += queue.full_s
            waited[after] += queue.empty_s
        return waited


class _StoppedError(Exception):
    """Nobody wants further items."""


class _Queue(Generic[Item]):
    """Hands items from one thread to another.

    Attributes:
        full_s: Seconds that the producer waited for room.
        empty_s: Seconds that the consumer waited for an item.
    """

    def __init__(self) -> None:
        self.full_s = 0.0
        self.empty_s = 0.0
        self._items: deque[Item] = deque()
        self._changed = threading.Condition()
        self._is_stopped = False
        self._is_complete = False
        self._error: BaseException | None = None

    def put(self, item: Item) -> None:
        with self._changed:
            started = time.perf_counter()
            self._changed.wait_for(lambda: len(self._items) < QUEUED_ITEMS or self._is_stopped)
            self.full_s += time.perf_counter() - started
            if self._is_stopped:
                raise _StoppedError
            self._items.append(item)
            self._changed.notify_all()

    def complete(self, error: BaseException | None = None) -> None:
        with self._changed:
            self._is_complete, self._error = True, error
            self._changed.notify_all()

    def stop(self) -> None:
        with self._changed:
            self._is_stopped = True
            self._changed.notify_all()

    def __iter__(self) -> Iterator[Item]:
        while True:
            with self._changed:
                started = time.perf_counter()
                self._changed.wait_for(lambda: self._items or self._is_complete or self._is_stopped)
                self.empty_s += time.perf_counter() - started
                if self._is_stopped:
                    raise _StoppedError
                if not self._items:
                    if self._error is not None:
                        raise self._error
                    return
                item = self._items.popleft()
                self._changed.notify_all()
            yield item
            del item  # or it would stand in memory until the next one is here


def _fill(queue: _Queue[Item], items: Iterable[Item]) -> None:
    try:
        for item in items:
            queue.put(item)
            del item
    except _StoppedError:
        pass
    except BaseException as error:
        queue.complete(error)
    else:
        queue.complete()
