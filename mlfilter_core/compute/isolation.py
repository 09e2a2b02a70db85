"""Applies a function to many items in worker processes, even if a process dies or never returns.

A C library such as HDF5 may crash or loop over a broken file instead of raising an exception.
"""

import faulthandler
import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from itertools import islice
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

# Items per process submitted in advance; few, so that a slow item delays few other items.
ITEMS_AHEAD = 64
# The pool gives each process an item and prefetches one more; any of them may have broken the pool.
SUSPECTS_BEYOND_PROCESSES = 2
# Time limit of a file, as HDF5 may never return over broken bytes: seconds, and seconds for each byte. Arbitrary, and
# far slower than the slowest disk.
FILE_S = 600.0
BYTE_S = 2e-6
DIED = "the process that read it died or did not return, as over broken HDF5; make the file again"


def time_limit_s(n_bytes: int) -> float:
    """Returns the time limit of an item that reads this many bytes."""
    return FILE_S + BYTE_S * n_bytes


def in_processes(
    function: Callable[[Item], Result],
    items: Iterable[tuple[Item, float]],
    n_processes: int,
    died: Callable[[Item], Result],
) -> Iterator[Result]:
    """Yields the results in the order of the items.

    Args:
        function: A picklable function; its exceptions are raised here.
        items: Picklable items with their time limits in seconds, after which the process is ended; read lazily.
        n_processes: Number of processes.
        died: Returns the result of an item whose process died or was ended twice.
    """
    left = iter(items)
    waiting: deque[_Waiting[Item, Result]] = deque()
    pool = _pool(n_processes)
    try:
        while True:
            for item, limit_s in islice(left, n_processes * ITEMS_AHEAD - len(waiting)):
                waiting.append(_Waiting(item, limit_s, _submit(pool, function, item, limit_s)))
            if not waiting:
                return
            try:
                result = waiting[0].future.result()
            except BrokenProcessPool:
                pool.shutdown()
                pool = _pool(n_processes)
                n_suspects = n_processes + SUSPECTS_BEYOND_PROCESSES
                waiting = deque(_retried(function, waiting, n_suspects, pool, died))
            else:
                waiting.popleft()
                yield result
    finally:
        pool.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class _Waiting(Generic[Item, Result]):
    item: Item
    limit_s: float
    future: "Future[Result]"


def _retried(
    function: Callable[[Item], Result],
    waiting: Iterable[_Waiting[Item, Result]],
    n_suspects: int,
    pool: ProcessPoolExecutor,
    died: Callable[[Item], Result],
) -> Iterator[_Waiting[Item, Result]]:
    """Yields the items with new futures; items that may have broken the pool run now, each in its own process."""
    for one in waiting:
        if not isinstance(one.future.exception(), BrokenProcessPool):
            yield one
        elif n_suspects > 0:
            n_suspects -= 1
            yield replace(one, future=_alone(function, one, died))
        else:
            yield replace(one, future=_submit(pool, function, one.item, one.limit_s))


def _alone(
    function: Callable[[Item], Result], one: _Waiting[Item, Result], died: Callable[[Item], Result]
) -> "Future[Result]":
    with _pool(1) as pool:
        done = _submit(pool, function, one.item, one.limit_s)
    if isinstance(done.exception(), BrokenProcessPool):
        done = Future()
        done.set_result(died(one.item))
    return done


def _submit(
    pool: ProcessPoolExecutor, function: Callable[[Item], Result], item: Item, limit_s: float
) -> "Future[Result]":
    try:
        return pool.submit(_within, function, item, limit_s)
    except BrokenProcessPool as error:
        broken: Future[Result] = Future()
        broken.set_exception(error)
        return broken


def _within(function: Callable[[Item], Result], item: Item, limit_s: float) -> Result:
    """Calls the function. After the time limit, ends this process, even while C code holds the interpreter lock."""
    with open(os.devnull, "w") as nowhere:
        faulthandler.dump_traceback_later(limit_s, exit=True, file=nowhere)
        try:
            return function(item)
        finally:
            faulthandler.cancel_dump_traceback_later()


def _pool(n_processes: int) -> ProcessPoolExecutor:
    # A forked process would inherit the locks of this process's threads in any state.
    return ProcessPoolExecutor(n_processes, multiprocessing.get_context("spawn"))
