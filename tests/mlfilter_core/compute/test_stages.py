import threading
import time
from collections.abc import Iterable, Iterator
from contextvars import ContextVar

import pytest

from mlfilter_core.compute.stages import QUEUED_ITEMS, Stages, held_back
from tests.conftest import within

who: ContextVar[str] = ContextVar("who")


def doubled(numbers: Iterable[int]) -> Iterator[int]:
    for number in numbers:
        yield 2 * number


def test_items_come_in_order_through_every_stage() -> None:
    seen: list[int] = []
    with Stages("count", "double", "double again", "collect") as stages:
        numbers = stages.run(doubled(stages.run(range(1000))))
        stages.hand_over(doubled(numbers), seen.extend)
    assert seen == list(range(0, 4000, 4))


def test_stages_run_at_the_same_time() -> None:
    """Each waits for the other three: one after another, they would wait for ever."""
    meeting = threading.Barrier(4, timeout=30)

    def met(items: Iterable[int]) -> Iterator[int]:
        for item in items:
            yield item
            meeting.wait()

    with Stages("first", "second", "third", "last") as stages:
        stages.hand_over(met(stages.run(met(stages.run(met(range(5)))))), lambda items: list(met(items)).clear())


def test_a_stage_runs_ahead_by_its_queue_and_no_further() -> None:
    made: list[int] = []

    def count() -> Iterator[int]:
        for number in range(100):
            made.append(number)
            yield number

    with Stages("count", "print") as stages:
        numbers = stages.run(count())
        assert next(numbers) == 0
        # One taken item, those in the queue, and one that waits for space.
        within(30, lambda: len(made) == 2 + QUEUED_ITEMS)
        time.sleep(0.1)
        assert len(made) == 2 + QUEUED_ITEMS


def test_an_error_comes_after_the_items_before_it_and_ends_every_thread() -> None:
    def broken() -> Iterator[int]:
        yield 1
        yield 2
        raise ValueError("the third")

    seen = []
    with pytest.raises(ValueError, match="the third"), Stages("broken", "double", "collect") as stages:
        for number in stages.run(doubled(stages.run(broken()))):
            seen.append(number)
    assert seen == [2, 4]
    assert not is_any_running()


def test_a_consumer_that_stops_early_ends_every_thread() -> None:
    is_closed = threading.Event()

    def endless() -> Iterator[int]:
        try:
            while True:
                yield 1
        finally:
            is_closed.set()

    with pytest.raises(KeyError), Stages("endless", "double", "collect") as stages:
        for _ in stages.run(doubled(stages.run(endless()))):
            raise KeyError
    assert not is_any_running()
    assert is_closed.wait(30)


@pytest.mark.parametrize("n_taken", [0, 3, 1000])
def test_an_error_of_what_is_handed_over_to_ends_the_stages_before_it(n_taken: int) -> None:
    def consume(items: Iterator[int]) -> None:
        for _ in range(n_taken):
            next(items, None)
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"), Stages("count", "double", "write") as stages:
        stages.hand_over(doubled(stages.run(range(1000))), consume)
    assert not is_any_running()


def test_an_error_before_ends_what_is_handed_over_to() -> None:
    seen: list[int] = []

    def broken() -> Iterator[int]:
        yield 1
        raise ValueError("the second")

    with pytest.raises(ValueError, match="the second"), Stages("broken", "collect") as stages:
        stages.hand_over(broken(), lambda items: seen.extend(items))
    assert not is_any_running()


def test_an_error_of_what_is_handed_over_to_comes_before_one_of_later_items() -> None:
    is_begun = threading.Event()

    def broken() -> Iterator[int]:
        yield 1
        yield 2
        assert is_begun.wait(30)
        raise ValueError("the third")

    def consume(items: Iterator[int]) -> None:
        for item in items:
            is_begun.set()
            time.sleep(0.05)  # meanwhile the third fails
            if item == 2:
                raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"), Stages("broken", "write") as stages:
        stages.hand_over(broken(), consume, in_order=True)
    assert not is_any_running()


def test_what_interrupts_the_caller_does_not_wait_for_the_consumer() -> None:
    seen: list[int] = []

    def interrupted() -> Iterator[int]:
        yield 1
        within(30, lambda: seen == [1])
        yield 2
        raise KeyboardInterrupt

    def consume(items: Iterator[int]) -> None:
        for item in items:
            seen.append(item)
            if item == 1:
                time.sleep(0.05)

    with pytest.raises(KeyboardInterrupt), Stages("interrupted", "collect") as stages:
        stages.hand_over(interrupted(), consume, in_order=True)
    assert seen == [1]
    assert not is_any_running()


@pytest.mark.parametrize(("in_order", "expected"), [(True, [1, 2]), (False, [])])
def test_what_has_begun_comes_before_an_error_where_it_is_asked_for(in_order: bool, expected: list[int]) -> None:
    def broken() -> Iterator[int]:
        yield 1
        yield 2
        raise ValueError("the third")

    seen = []
    with pytest.raises(ValueError, match="the third"):
        for number in held_back(broken(), 2, in_order):
            seen.append(number)
    assert seen == expected


@pytest.mark.parametrize("n_items", [1, 20])
def test_the_slow_stage_is_the_one_that_waits_least(n_items: int) -> None:
    def slow(items: Iterable[int]) -> Iterator[int]:
        for item in items:
            time.sleep(0.4 / n_items)
            yield item

    with Stages("count", "slow", "double", "collect") as stages:
        stages.hand_over(doubled(stages.run(slow(stages.run(range(n_items))))), lambda items: list(items).clear())
        waited = stages.waited()
    assert list(waited) == ["count", "slow", "double", "collect"]
    assert min(waited, key=lambda stage: waited[stage]) == "slow"
    assert min(waited["count"], waited["double"], waited["collect"]) > 0.25


def test_a_stage_runs_in_the_context_of_its_caller() -> None:
    who.set("the caller")
    with Stages("ask", "collect") as stages:
        assert list(stages.run(who.get() for _ in range(2))) == ["the caller"] * 2


def is_any_running() -> bool:
    return any(thread.name == "stage" for thread in threading.enumerate())
