"""Stages of a pipeline that run at the same time, with a bounded queue between two neighbours.

Knows nothing about what they do.
"""

import contextvars
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")

QUEUED_ITEMS = 1  # enough for both sides to continue while the other is busy


class Stages:
    """Runs the stages of a pipeline, all but one in separate threads. Use it as a context manager.

    The end of the block stops every thread at its next item and waits for it, even if items are left.

    Example:
        with Stages("count", "square", "print") as stages:
            numbers = stages.run(range(9))
            stages.hand_over((number * number for number in numbers), lambda squares: print(*squares))
    """

    def __init__(self, *names: str) -> None:
        """Takes the names of the stages, in the order in which data flows through them."""
        self._names = names
        self._queues: list[_Queue[Any]] = []
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> "Stages":
        return self

    def __exit__(self, *exc_info: object) -> None:
        for queue in self._queues:
            queue.stop()
        for thread in self._threads:
            thread.join()

    def run(self, items: Iterable[Item]) -> Iterator[Item]:
        """Iterates ahead in a thread, and yields the items; raises an error of the thread after the items before it."""
        queue: _Queue[Item] = _Queue()
        self._start(queue, _fill, items)
        return iter(queue)

    def hand_over(
        self, items: Iterable[Item], consume: Callable[[Iterator[Item]], None], in_order: bool = False
    ) -> None:
        """Iterates in the caller's thread, and consumes in another; returns or raises when the consumer has ended.

        Args:
            items: Items to hand over.
            consume: Consumes them.
            in_order: Whether an error of the items is raised where the consumer asks for the item, so that an error
                that it has of those before comes first; otherwise at once.
        """
        queue: _Queue[Item] = _Queue()
        thread = self._start(queue, _drain, consume)
        failed: Exception | None = None
        try:
            for item in items:
                queue.put(item)
                del item  # otherwise it would stay in memory until the next one exists
        except Exception as error:  # whatever interrupts the caller, such as Ctrl-C, does not wait for the consumer
            if not in_order:
                raise
            failed = error
        queue.complete(failed)
        thread.join()
        if (raised := queue.consumer_error or failed) is not None:
            raise raised

    def waited(self) -> dict[str, float]:
        """Returns the seconds that each stage was idle, waiting or finished: the bottleneck is idle least."""
        waited = dict.fromkeys(self._names, 0.0)
        now = time.perf_counter()
        for (before, after), queue in zip(
            pairwise(self._names), self._queues, strict=False
        ):  # none if none was started
            waited[before] += queue.full_s + (now - queue.completed_at if queue.completed_at else 0.0)
            waited[after] += queue.empty_s
        return waited

    def _start(self, queue: "_Queue[Any]", work: Callable[["_Queue[Any]", Any], None], on: Any) -> threading.Thread:
        # In the caller's context, by which log records find their run.
        context = contextvars.copy_context()
        thread = threading.Thread(target=context.run, args=(work, queue, on), name="stage", daemon=True)
        self._queues.append(queue)
        self._threads.append(thread)
        thread.start()
        return thread


def held_back(items: Iterable[Item], n: int, in_order: bool = False) -> Iterator[Item]:
    """Yields the items, each when n more have begun: `held_back("abc", 1)` makes "b" before it yields "a".

    An error of the items comes at once, or `in_order` after those that have begun.
    """
    begun: deque[Item] = deque()
    failed: Exception | None = None
    try:
        for item in items:
            begun.append(item)
            if len(begun) > n:
                yield begun.popleft()
    except Exception as error:
        if not in_order:
            raise
        failed = error
    yield from begun
    if failed is not None:
        raise failed


class _StoppedError(Exception):
    """The pipeline was stopped."""


class _Queue(Generic[Item]):
    """Hands items from one thread to another.

    Attributes:
        full_s: Seconds that the producer waited for room.
        empty_s: Seconds that the consumer waited for an item.
        completed_at: Time at which the producer ended, on the clock of `time.perf_counter`; 0 before.
        consumer_error: Error that ended the consumer.
    """

    def __init__(self) -> None:
        self.full_s = 0.0
        self.empty_s = 0.0
        self.completed_at = 0.0
        self.consumer_error: BaseException | None = None
        self._items: deque[Item] = deque()
        self._changed = threading.Condition()
        self._is_stopped = False
        self._is_complete = False
        self._producer_error: BaseException | None = None

    def put(self, item: Item) -> None:
        with self._changed:
            started = time.perf_counter()
            self._changed.wait_for(lambda: len(self._items) < QUEUED_ITEMS or self._is_stopped or self.consumer_error)
            self.full_s += time.perf_counter() - started
            if self.consumer_error is not None:
                raise self.consumer_error
            if self._is_stopped:
                raise _StoppedError
            self._items.append(item)
            self._changed.notify_all()

    def complete(self, error: BaseException | None = None) -> None:
        with self._changed:
            self._is_complete, self._producer_error = True, error
            self.completed_at = time.perf_counter()
            self._changed.notify_all()

    def give_up(self, error: BaseException) -> None:
        with self._changed:
            self.consumer_error = error
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
                    if self._producer_error is not None:
                        raise self._producer_error
                    return
                item = self._items.popleft()
                self._changed.notify_all()
            yield item
            del item


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


def _drain(queue: _Queue[Item], consume: Callable[[Iterator[Item]], None]) -> None:
    try:
        consume(iter(queue))
    except _StoppedError:
        pass
    except BaseException as error:
        queue.give_up(error)
