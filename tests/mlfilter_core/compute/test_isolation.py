import os
import re
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from mlfilter_core.compute.isolation import in_processes


def square(n: int) -> int:
    return n * n


def square_or_die(n: int) -> int:
    """Dies like a reader of a broken HDF5 file."""
    if n % 7 == 3:
        os.kill(os.getpid(), signal.SIGSEGV)
    return n * n


def die_the_first_time(path: Path) -> str:
    if not path.exists():
        path.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "done"


def raise_error(n: int) -> int:
    raise ValueError(f"no {n}")


def square_or_loop(n: int) -> int:
    """Loops in C with the interpreter lock, as HDF5 does on some broken files."""
    if n == 1:
        re.match(r"(a+)+$", "a" * 60 + "b")
    return n * n


def unlimited(items: Iterable[int]) -> list[tuple[int, float]]:
    return [(item, 60.0) for item in items]


def died(n: int) -> int:
    return -n


def test_results_come_in_the_order_of_the_items() -> None:
    assert list(in_processes(square, unlimited(range(300)), 2, died)) == [n * n for n in range(300)]


def test_few_items_are_asked_for_ahead() -> None:
    asked: list[int] = []

    def items() -> Iterator[tuple[int, float]]:
        for n in range(10_000):
            asked.append(n)
            yield n, 60.0

    results = in_processes(square, items(), 1, died)
    assert next(results) == 0
    assert len(asked) < 100
    results.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("n_processes", [1, 2])
def test_a_process_that_dies_costs_its_own_item_alone(n_processes: int) -> None:
    expected = [-n if n % 7 == 3 else n * n for n in range(20)]
    assert list(in_processes(square_or_die, unlimited(range(20)), n_processes, died)) == expected


def test_an_item_is_given_another_process_before_it_counts_as_deadly(tmp_path: Path) -> None:
    assert list(in_processes(die_the_first_time, [(tmp_path / "x", 60.0)], 1, lambda _: "died")) == ["done"]


def test_a_process_that_takes_too_long_is_ended() -> None:
    assert list(in_processes(square_or_loop, [(n, 4.0) for n in range(4)], 2, died)) == [0, -1, 4, 9]


def test_what_the_function_raises_is_raised() -> None:
    with pytest.raises(ValueError, match="no 5"):
        list(in_processes(raise_error, unlimited([5]), 1, died))


def test_no_item_needs_no_process() -> None:
    assert list(in_processes(square, [], 2, died)) == []
