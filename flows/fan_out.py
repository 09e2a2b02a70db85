"""A Prefect task over many items on Dask workers, a bounded number of them in flight."""

import logging
import queue
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, TypeVar

from distributed import CancelledError, Future, KilledWorker
from prefect import Task
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.states import Crashed
from prefect_dask import DaskTaskRunner
from prefect_dask.task_runners import PrefectDaskFuture

from mlfilter_core.errors import MlfilterError

_log = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")

# Tasks in flight for each worker: one that runs, one that is ready when it ends. More would only cost
# memory (98 kB each in this process) and be killed along when a worker dies.
IN_FLIGHT_PER_WORKER = 2


@dataclass(frozen=True)
class Outcome(Generic[Item, Result]):
    """What became of one item: `result` or `error`."""

    item: Item
    result: Result | None
    error: Exception | None


def fan_out(
    runner: DaskTaskRunner, task: Task[Any, Result], items: Iterable[Item], parameters: dict[str, Any], n_workers: int
) -> Iterator[Outcome[Item, Result]]:
    """Runs `task(item, **parameters)` for every item; yields outcomes as they come.

    Closing the iterator early cancels what is in flight.

    Args:
        runner: Started.
        task: Its first parameter takes the item.
        items: Taken one by one as workers get free.
        parameters: The same for every item.
        n_workers: Bounds the tasks in flight.
    """
    first_parameter = next(iter(task.fn.__annotations__))
    finished: queue.SimpleQueue[Future] = queue.SimpleQueue()
    in_flight: dict[str, tuple[Item, PrefectDaskFuture[Result]]] = {}
    waiting = iter(items)

    def submit(n: int) -> None:
        for item in islice(waiting, n):
            future = runner.submit(task, parameters={first_parameter: item, **parameters})
            in_flight[future.wrapped_future.key] = (item, future)
            future.wrapped_future.add_done_callback(finished.put)

    try:
        submit(n_workers * IN_FLIGHT_PER_WORKER)
        while in_flight:
            item, future = in_flight.pop(finished.get().key)
            outcome: Outcome[Item, Result] = _outcome(item, future)
            # A worker that dies takes the results it holds along, and Dask makes them again by running
            # finished tasks once more, unless they are released (PrefectHQ/prefect#15442).
            future.wrapped_future.release()
            submit(1)
            yield outcome
    finally:
        for _, future in in_flight.values():
            future.wrapped_future.cancel()


def _outcome(item: Item, future: PrefectDaskFuture[Result]) -> Outcome[Item, Result]:
    try:
        state = future.wrapped_future.result()
    except (KilledWorker, CancelledError) as error:  # the task never came to a state of its own
        died = MlfilterError(
            f"its worker died or was lost, several times ({type(error).__name__}: {error}); look at the end of the "
            "workers' logs and at the machine's memory"
        )
        _mark_crashed(future, str(died))
        return Outcome(item, None, died)
    except Exception as error:  # from around the task: its worker could not reach the API, or load the task
        _mark_crashed(future, str(error))
        return Outcome(item, None, error)
    result = state.result(raise_on_failure=False) if isinstance(state, State) else state
    if isinstance(result, Exception):
        return Outcome(item, None, result)
    return Outcome(item, result, None)


def _mark_crashed(future: PrefectDaskFuture[Any], message: str) -> None:
    """Ends the task run, which would stay Running for ever in the UI (PrefectHQ/prefect#17384)."""
    try:
        with get_client(sync_client=True) as client:
            client.set_task_run_state(future.task_run_id, Crashed(message=message), force=True)
    except Exception as error:  # the run's other files matter more; a task that died early is not even known
        _log.debug("the task run %s could not be marked as crashed: %s", future.task_run_id, error)
