"""A Dask task runner whose workers need no Prefect."""

import asyncio
import functools
import inspect
import logging
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

from dask._task_spec import Task as DaskTask
from distributed import CancelledError, Future, KilledWorker
from prefect import Task
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext, TaskRunContext
from prefect.futures import PrefectConcurrentFuture
from prefect.logging.handlers import APILogHandler
from prefect.states import Cancelled, Crashed
from prefect.task_engine import run_task_sync
from prefect_dask import DaskTaskRunner

from flows.prefect_api.failures import expected_errors_as_states
from flows.watching.progress_artifacts import ProgressArtifact
from flows.workers.on_worker import LOGGED, STARTED, TOPIC, last_words, run_on_worker
from mlfilter_core.errors import MlfilterError
from mlfilter_core.work.progress import Progress

Result = TypeVar("Result")

_log = logging.getLogger(__name__)

# Number of executions without progress, including those whose worker died, after which a task fails. Dask counts
# only deaths; without this limit, a file that commits nothing before its worker stops would be started again forever.
MAX_STARTS = 5
# How often a thread that waits for a task checks that limit; executions last minutes.
LOOK_S = 5
# Time that a worker gets to end. Nobody waits for it.
RESTART_S = 60
# Most threads in which Prefect's engine computes at a time; there is one for each task in flight. If hundreds of them
# waited for Python's lock, the thread of Dask's scheduler would get it too seldom to keep its connections.
N_COMPUTING = 8
# Time in which Dask connects to its scheduler again.
RECONNECT_S = 60
# A task that takes longer gets its own progress bar in the UI.
LONG_S = 60
RUN_SEPARATOR = "/"


class WorkerLostError(MlfilterError):
    """A task did not finish because its workers ended before."""


class _Turn:
    """The turn of one thread among those that compute."""

    def __init__(self, turns: threading.Semaphore) -> None:
        self._turns = turns
        self._is_taken = False

    def take(self) -> None:
        if not self._is_taken:
            self._turns.acquire()
            self._is_taken = True

    def give(self) -> None:
        if self._is_taken:
            self._is_taken = False
            self._turns.release()


@dataclass
class _TaskRun:
    """What is known of a task run while it executes; changed by the thread of the Dask client.

    Attributes:
        name: Name for a person.
        future: Its present execution.
        worker: Address of the worker that executes it, or did so last; empty before the first one.
        n_starts: Number of executions since it last made progress.
        has_progressed: Whether the present execution has committed documents.
        was_excused: Whether it was executed again after deaths on a node that is not used again.
        committed: Largest number of committed documents so far, by file.
        progress: Latest progress of its present file.
    """

    name: str
    future: Future | None = None
    worker: str = ""
    n_starts: int = 0
    has_progressed: bool = False
    was_excused: bool = False
    committed: dict[str, int] = field(default_factory=dict)
    progress: Progress | None = None

    def hear(self, progress: Progress) -> None:
        """Takes the progress of a file."""
        if progress.committed > self.committed.get(progress.file, 0):
            self.committed[progress.file] = progress.committed
            self.n_starts = 0
            self.has_progressed = True
        self.progress = progress


class WorkerTaskRunner(DaskTaskRunner):  # type: ignore[misc]
    """Runs a task's function on a Dask worker, and everything that Prefect does for it in the flow's process.

    `DaskTaskRunner` runs Prefect's engine on the worker, beside the function. This costs ten times the CPU
    (benchmarks/orchestration.py), sends settings and their secrets to every worker, needs an API that every compute
    node can reach, and leaves a task run Running forever if its worker dies (PrefectHQ/prefect#17384). Here, the
    engine runs in a thread that waits for the worker: states, retries and logs come from the flow's process, and the
    death of a worker is an error like any other.
    """

    def __init__(self, logs: Path, **dask: Any) -> None:
        """Takes the arguments of `DaskTaskRunner`, and the folder of the workers' log files."""
        super().__init__(**dask)
        self.logger.setLevel(logging.WARNING)  # its lines are about addresses, which the UI's link has
        self._logs = logs
        # Not Prefect's ThreadPoolTaskRunner: it keeps 1.3 KB for each task until the run ends, and on exit makes
        # tasks that wait for a retry Crashed, not Cancelled. Threads start as needed, one for each task in flight.
        self._engines = ThreadPoolExecutor(sys.maxsize)
        self.ui = APILogHandler()
        self._turns = threading.Semaphore(N_COMPUTING)
        self._runs: dict[str, _TaskRun] = {}
        self._is_ending = False
        self._addresses: dict[str, str] = {}
        self._stopped: set[str] = set()
        # Called with the worker's name when it reports the progress of a file.
        self.on_progress: Callable[[str, Progress], None] = lambda worker, progress: None
        # Called where a task fails on a worker, and then succeeds on another: with their addresses and its name.
        self.on_healed: Callable[[str, str, str], None] = lambda failed, healthy, task: None
        # Tells, by its address, whether a worker gets no further tasks because workers die there.
        self.is_given_up: Callable[[str], bool] = lambda worker: False

    def submit(
        self,
        task: Task[Any, Result],
        parameters: dict[str, Any],
        wait_for: Iterable[Any] | None = None,
        dependencies: dict[str, set[Any]] | None = None,
    ) -> PrefectConcurrentFuture[Result]:
        """Starts a task run; its function must not use Prefect, and must return something that can be pickled."""
        waiting = task.with_options()
        turn = _Turn(self._turns)
        waiting.fn = expected_errors_as_states(self._on_worker(task.fn, turn))
        task_run_id = uuid4()
        engine = self._engines.submit(
            copy_context().run,
            _in_turn,
            turn,
            run_task_sync,
            task=waiting,
            task_run_id=task_run_id,
            parameters=parameters,
            wait_for=wait_for,
            return_type="state",
            dependencies=dependencies,
        )
        return PrefectConcurrentFuture(task_run_id, engine)

    def cancel(self) -> None:
        """Makes the task runs that execute, and those that wait for a retry, end as Cancelled."""
        self._is_ending = True
        for run in list(self._runs.values()):
            if run.future is not None:
                run.future.cancel()

    def names_of(self, keys: Collection[str]) -> list[str]:
        """Returns the names of the tasks that execute under some of Dask's keys."""
        return [run.name for run in list(self._runs.values()) if run.future is not None and run.future.key in keys]

    def address_of(self, worker: str) -> str:
        """Returns the address of a worker that has begun a task, by its name; empty if that was not heard."""
        return self._addresses.get(worker, "")

    def executes(self, worker: str, file: str) -> bool:
        """Returns whether a worker, given by its address, is at a file; if it was lost, the file waits for another."""
        state = self.client.cluster.scheduler.workers.get(worker)
        return state is not None and any(
            run.future is not None
            and run.progress is not None
            and run.progress.file == file
            and any(task.key == run.future.key for task in list(state.processing))
            for run in list(self._runs.values())
        )

    def stop(self, worker: str) -> None:
        """Ends the process of a worker, given by its address; another worker runs its task, and a new one starts."""
        self._stopped.add(worker)
        cluster = self.client.cluster
        # Without the client, which would wait for the new worker; at the end of a run there may be none.
        restarting = cluster.scheduler.restart_workers(
            [worker], timeout=RESTART_S, wait_for_workers=False, on_error="return", stimulus_id=f"stop-{worker}"
        )
        asyncio.run_coroutine_threadsafe(restarting, cluster.loop.asyncio_loop)

    def has_stopped(self, worker: str) -> bool:
        """Returns whether `stop` has ended a worker, given by its address."""
        return worker in self._stopped

    def __enter__(self) -> "WorkerTaskRunner":
        super().__enter__()
        self.client.subscribe_topic(TOPIC, self._hear)
        return self

    def __exit__(self, *error: Any) -> None:
        self.cancel()
        self._engines.shutdown()
        super().__exit__(*error)

    def _on_worker(self, function: Callable[..., Result], turn: _Turn) -> Callable[..., Result]:
        failed_on: set[str] = set()  # workers of earlier attempts of Prefect

        @functools.wraps(function)
        def on_worker(*args: Any, **kwargs: Any) -> Result:
            arguments = inspect.signature(function).bind(*args, **kwargs).arguments
            run_id, name = _run_id(), _run_name()
            run = self._runs[run_id] = _TaskRun(name)
            turn.give()
            try:
                result = self._execute(function, arguments, run_id)
                turn.take()  # not after an error: Prefect may sleep before it tries again
                for worker in failed_on - {run.worker}:
                    self.on_healed(worker, run.worker, name)
                return result
            except OSError:
                if run.worker:  # it may fail before it tells that it begins
                    failed_on.add(run.worker)
                raise
            except KilledWorker as error:
                n, host = error.allowed_failures + 1, error.last_worker.host
                return _ended(  # type: ignore[no-any-return]
                    Crashed,
                    f"its worker died while running it, {n} times, last on {host}; {last_words(self._logs, run_id)}",
                )
            except CancelledError:
                return _ended(Cancelled, "the run ended before this task did")  # type: ignore[no-any-return]
            finally:
                _forget_assets()
                del self._runs[run_id]

        return on_worker

    def _execute(self, function: Callable[..., Result], arguments: dict[str, Any], run_id: str) -> Result:
        """Returns the result of the function on a worker; restarts it after deaths while it makes progress."""
        run, bar = self._runs[run_id], ProgressArtifact(None)
        while True:
            run.has_progressed = False
            run.future = self._submit(run_on_worker, function, arguments, run_id, self._logs, name=function.__name__)
            if self._is_ending:
                run.future.cancel()
            try:
                self._wait(run.future, run, bar)
                result: Result | MlfilterError = run.future.result()
                if isinstance(result, MlfilterError):
                    raise result
                if run.progress is not None:
                    bar.end(run.progress.file)
                return result
            except KilledWorker as error:  # raised after some deaths, no matter how much was done in between
                is_excused = not run.was_excused and self.is_given_up(error.last_worker.address)
                if not run.has_progressed and not is_excused:
                    raise
                run.was_excused |= is_excused
            except CancelledError:
                is_forgotten = run.future.status == "cancelled"  # otherwise, the function itself raised this
                if self._is_ending or not is_forgotten or not self._connects_again():
                    raise
                run.n_starts = 0
                _log.warning("%s is run again: the connection to Dask's scheduler was lost", run.name)
            finally:
                # If a worker dies, its results are lost, and Dask runs finished tasks again to compute them,
                # unless they are released (PrefectHQ/prefect#15442).
                run.future.release()

    def _submit(self, function: Callable[..., Any], *arguments: Any, name: str) -> Future:
        """Submits a task that waits at the scheduler until a worker is free, as `worker-saturation` says.

        Dask would do so only for the tasks of a group that has at some time been larger than twice the workers, and
        give others to a worker that has one; that task would die with the first. It trusts tasks that are marked as
        producers of data to be many.
        """
        key = f"{name}-{uuid4().hex}"  # Dask groups tasks by what is before the last dash
        return self.client.get({key: DaskTask(key, function, *arguments, _data_producer=True)}, key, sync=False)

    def _connects_again(self) -> bool:
        """Returns whether the client has connected to the scheduler again, which has forgotten what it asked for."""
        end = time.monotonic() + RECONNECT_S
        while self.client.status == "connecting" and time.monotonic() < end:
            time.sleep(0.1)
        if self.client.status != "running":
            return False
        self.client.subscribe_topic(TOPIC, self._hear)
        return True

    def _wait(self, future: Future, run: _TaskRun, bar: ProgressArtifact) -> None:
        done = threading.Event()
        future.add_done_callback(lambda _: done.set())
        began = time.monotonic()
        while not done.wait(LOOK_S):
            if time.monotonic() - began > LONG_S and run.progress is not None:
                bar.show_file(run.progress)
            if run.n_starts > MAX_STARTS:
                future.cancel()
                raise WorkerLostError(
                    f"it was started {run.n_starts} times, and each time its worker ended before it made progress; "
                    "give the jobs more time (slurm_settings.time), or commit more often (params.commit_documents)"
                )

    def _hear(self, event: tuple[float, dict[str, Any]]) -> None:
        """Takes an event from a worker; called in the thread of the Dask client."""
        _, said = event
        run = self._runs.get(said["run"])
        if said["event"] == LOGGED:
            self._log(said)
        elif run is None:  # it has ended since
            return
        elif said["event"] == STARTED:
            run.n_starts += 1
            run.worker = self._addresses[said["name"]] = said["address"]
        else:
            progress = Progress(**said["progress"])
            run.hear(progress)
            self.on_progress(said["name"], progress)

    def _log(self, line: dict[str, Any]) -> None:
        record = logging.LogRecord(line["name"], line["level"], "", 0, line["message"], None, None)
        record.created = line["time"]
        record.flow_run_id, record.task_run_id = line["run"].split(RUN_SEPARATOR)
        self.ui.handle(record)
        if record.levelno >= logging.INFO:
            logging.getLogger().handle(record)  # on the terminal


def _in_turn(turn: _Turn, function: Callable[..., Any], **arguments: Any) -> Any:
    turn.take()
    try:
        return function(**arguments)
    finally:
        turn.give()


def _run_id() -> str:
    """Returns the ids of the flow run and of the task run."""
    context = TaskRunContext.get()
    assert context is not None, "the engine calls a task's function within the task run"
    return f"{context.task_run.flow_run_id}{RUN_SEPARATOR}{context.task_run.id}"


def _run_name() -> str:
    context = TaskRunContext.get()
    assert context is not None, "the engine calls a task's function within the task run"
    return context.task_run.name


def _forget_assets() -> None:
    """Removes Prefect's entry for the task run's assets: it has none, and Prefect keeps entries until the flow ends."""
    flow_context, task_context = FlowRunContext.get(), TaskRunContext.get()
    if flow_context is not None and task_context is not None:
        flow_context.task_run_assets.pop(task_context.task_run.id, None)


def _ended(state: Callable[..., State[Any]], message: str) -> Any:
    return state(message=message, data=WorkerLostError(message))
