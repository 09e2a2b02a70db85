import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar

import pytest

from mlfilter_core.stages import QUEUED_ITEMS, Stages

who: ContextVar[str] = ContextVar("who")


def doubled(numbers: Iterable[int]) -> Iterator[int]:
    for number in numbers:
        yield 2 * number


def test_items_come_in_order_through_every_stage() -> None:
    with Stages() as stages:
        numbers = stages.run("count", range(1000))
        assert list(stages.run("double", doubled(numbers))) == list(range(0, 2000, 2))


def test_stages_run_at_the_same_time() -> None:
    """Each waits for the other two: one after another, they would wait for ever."""
    meeting = threading.Barrier(3, timeout=30)

    def met(items: Iterable[int]) -> Iterator[int]:
        for item in items:
            yield item
            meeting.wait()

    with Stages() as stages:
        first = stages.run("first", met(range(5)))
        for _ in stages.run("second", met(first)):
            meeting.wait()


def test_a_stage_runs_ahead_by_its_queue_and_no_further() -> None:
    made: list[int] = []

    def count() -> Iterator[int]:
        for number in range(100):
            made.append(number)
            yield number

    with Stages() as stages:
        numbers = stages.run("count", count())
        assert next(numbers) == 0
        until(lambda: len(made) == 2 + QUEUED_ITEMS)  # the one taken, those in the queue, and one that waits for room
        time.sleep(0.1)
        assert len(made) == 2 + QUEUED_ITEMS


def test_an_error_comes_after_the_items_before_it_and_ends_every_thread() -> None:
    def broken() -> Iterator[int]:
        yield 1
        yield 2
        raise ValueError("the third")

    seen = []
    with pytest.raises(ValueError, match="the third"), Stages() as stages:
        for number in stages.run("double", doubled(stages.run("broken", broken()))):
            seen.append(number)
    assert seen == [2, 4]
    assert not {thread.name for thread in threading.enumerate()} & {"double", "broken", "endless"}


def test_a_consumer_that_stops_early_ends_every_thread() -> None:
    is_closed = threading.Event()

    def endless() -> Iterator[int]:
        try:
            while True:
                yield 1
        finally:
            is_closed.set()

    with pytest.raises(KeyError), Stages() as stages:
        for _ in stages.run("double", doubled(stages.run("endless", endless()))):
            raise KeyError
    assert not {thread.name for thread in threading.enumerate()} & {"double", "broken", "endless"}
    assert is_closed.wait(30)


def test_the_slow_stage_is_the_one_that_waits_least() -> None:
    def slow(items: Iterable[int]) -> Iterator[int]:
        for item in items:
            time.sleep(0.02)
            yield item

    with Stages() as stages:
        numbers = stages.run("count", range(20))
        for _ in stages.run("double", doubled(stages.run("slow", slow(numbers)))):
            pass
        waited = stages.waited("print")
    assert list(waited) == ["count", "slow", "double", "print"]
    assert waited["slow"] < 0.1
    assert min(waited["count"], waited["double"], waited["print"]) > 0.25


def test_a_stage_runs_in_the_context_of_its_caller() -> None:
    who.set("the caller")
    with Stages() as stages:
        assert list(stages.run("ask", (who.get() for _ in range(2)))) == ["the caller"] * 2


def until(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.01)
