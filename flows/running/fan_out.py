"""A Prefect task over many items on Dask workers, a bounded number of them in flight."""

import queue
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from prefect import Task
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture

from flows.workers.task_runner import WorkerTaskRunner

Item = TypeVar("Item")
Item_co = TypeVar("Item_co", covariant=True)
Result = TypeVar("Result")

# One task waits at the scheduler for so many workers.
WORKERS_PER_WAITING = 8
# How often the workers are tended while no task ends.
TEND_S = 1


class Workers(Protocol):
    """Workers that come and go."""

    @property
    def runner(self) -> WorkerTaskRunner:
        """Started."""

    def tend(self, n_tasks: int) -> int:
        """Sees to it that there are as many workers as `n_tasks` unfinished tasks need; called often.

        Returns:
            How many there are now.

        Raises:
            JobError: There will never be any.
        """


class Items(Protocol[Item_co]):
    """What is left to do."""

    def __len__(self) -> int:
        """About how many tasks it makes; 0 only where nothing is left."""

    def take(self, n_workers: int) -> Item_co:
        """Returns the next item; called while some are left."""


@dataclass(frozen=True)
class Outcome(Generic[Item, Result]):
    """What became of one item: `result` or `error`."""

    item: Item
    result: Result | None
    error: Exception | None


def fan_out(
    workers: Workers, task: Task[Any, Result], items: Items[Item], parameters: dict[str, Any]
) -> Iterator[Outcome[Item, Result]]:
    """Runs `task(item, **parameters)` for every item; yields outcomes as they come.

    No task is in flight while there is no worker for it, so that none is shown as running while it waits in a
    queue of days. Closing the iterator early cancels what is in flight.

    Args:
        workers: Tended until the last outcome.
        task: Its first parameter takes the item.
        items: Taken one by one as workers get free; may get more while outcomes are looked at.
        parameters: The same for every item.

    Raises:
        JobError: There will never be any workers.
    """
    first_parameter = next(iter(task.fn.__annotations__))
    finished: queue.SimpleQueue[PrefectFuture[Result]] = queue.SimpleQueue()
    in_flight: dict[Any, Item] = {}
    n_submitted = 0
    try:
        while items or in_flight:
            n_workers = workers.tend(len(items) + len(in_flight))
            n_wanted = n_workers + _n_ahead(n_workers, n_submitted)
            while items and len(in_flight) < n_wanted:
                item = items.take(n_workers)
                submitted = workers.runner.submit(task, parameters={first_parameter: item, **parameters})
                in_flight[submitted.task_run_id] = item
                n_submitted += 1
                submitted.add_done_callback(finished.put)
            try:
                future = finished.get(timeout=TEND_S)
            except queue.Empty:
                continue
            yield _outcome(in_flight.pop(future.task_run_id), future)
    finally:
        if in_flight:
            workers.runner.cancel()


def _n_ahead(n_workers: int, n_submitted: int) -> int:
    """Returns how many tasks wait at the scheduler, so that a worker that gets free finds one at once.

    None at first: Dask holds tasks back (`worker-saturation`) only where they are more than twice the workers,
    those that are done counted; before, it gives a worker a second task, which dies with the first.
    """
    return max(1, n_workers // WORKERS_PER_WAITING) if n_workers and n_submitted > 2 * n_workers else 0


def _outcome(item: Item, future: PrefectFuture[Result]) -> Outcome[Item, Result]:
    try:
        result: Any = future.result(raise_on_failure=False)
    except Exception as error:  # from around the task's function: a fault of Prefect's or ours
        return Outcome(item, None, error)
    if isinstance(result, State):
        result = result.result(raise_on_failure=False)
    return Outcome(item, None, result) if isinstance(result, Exception) else Outcome(item, result, None)
