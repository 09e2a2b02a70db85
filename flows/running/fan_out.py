"""A Prefect task over many items on Dask workers, with a bounded number of tasks in flight."""

import queue
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from prefect import Task
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture

from flows.prefect_api.server import check_own_server
from flows.workers.task_runner import WorkerTaskRunner

Item = TypeVar("Item")
Item_co = TypeVar("Item_co", covariant=True)
Result = TypeVar("Result")

# Number of workers for each task that waits at the scheduler.
WORKERS_PER_WAITING = 8
# Seconds between two looks at the workers while no task ends.
TEND_S = 1


class Workers(Protocol):
    """Workers that come and go."""

    @property
    def runner(self) -> WorkerTaskRunner:
        """The task runner, started."""

    def tend(self, n_tasks: int) -> int:
        """Keeps as many workers as `n_tasks` unfinished tasks need; called often.

        Returns:
            Number of workers now.

        Raises:
            JobError: No worker can ever start.
        """


class Items(Protocol[Item_co]):
    """The remaining items."""

    def __len__(self) -> int:
        """Returns the approximate number of their tasks; 0 only if no item remains."""

    def take(self, n_workers: int) -> Item_co:
        """Returns the next item; called only while items remain."""


@dataclass(frozen=True)
class Outcome(Generic[Item, Result]):
    """The result of one item, or its error."""

    item: Item
    result: Result | None
    error: Exception | None


def fan_out(
    workers: Workers,
    task: Task[Any, Result],
    items: Items[Item],
    parameters: dict[str, Any],
    on_workers: Callable[[int], None] = lambda n_workers: None,
) -> Iterator[Outcome[Item, Result]]:
    """Runs `task(item, **parameters)` for every item; yields outcomes in the order in which tasks end.

    A task is submitted when there is a worker for it: otherwise the UI would show it as running while the worker's job
    waits in a queue for days. Closing the iterator early cancels the tasks in flight.

    Args:
        workers: Workers, kept until the last outcome.
        task: Task whose first parameter takes the item.
        items: Items, taken one by one as workers become free; the caller may add items between two outcomes.
        parameters: Further parameters, the same for every item.
        on_workers: Called often, with the number of workers.

    Raises:
        JobError: No worker can ever start.
        DatabaseError: The run's own Prefect server cannot write to its database.
    """
    first_parameter = next(iter(task.fn.__annotations__))
    finished: queue.SimpleQueue[PrefectFuture[Result]] = queue.SimpleQueue()
    in_flight: dict[Any, Item] = {}
    try:
        while items or in_flight:
            check_own_server()
            n_workers = workers.tend(len(items) + len(in_flight))
            on_workers(n_workers)
            n_wanted = n_workers + _n_ahead(n_workers)
            while items and len(in_flight) < n_wanted:
                item = items.take(n_workers)
                submitted = workers.runner.submit(task, parameters={first_parameter: item, **parameters})
                in_flight[submitted.task_run_id] = item
                submitted.add_done_callback(finished.put)
            try:
                future = finished.get(timeout=TEND_S)
            except queue.Empty:
                continue
            yield _outcome(in_flight.pop(future.task_run_id), future)
    finally:
        if in_flight:
            workers.runner.cancel()


def _n_ahead(n_workers: int) -> int:
    """Returns how many tasks wait at the scheduler, so that a free worker gets one at once."""
    return max(1, n_workers // WORKERS_PER_WAITING) if n_workers else 0


def _outcome(item: Item, future: PrefectFuture[Result]) -> Outcome[Item, Result]:
    try:
        result: Any = future.result(raise_on_failure=False)
    except Exception as error:  # raised around the task's function: a bug in Prefect or here
        return Outcome(item, None, error)
    if isinstance(result, State):
        result = result.result(raise_on_failure=False)
    return Outcome(item, None, result) if isinstance(result, Exception) else Outcome(item, result, None)
