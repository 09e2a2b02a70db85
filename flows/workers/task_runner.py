"""A Dask task runner whose workers need no Prefect."""

import functools
import inspect
import logging
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

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
from flows.workers.on_worker import PROGRESSED, STARTED, TOPIC, last_words, run_on_worker
from mlfilter_core.errors import MlfilterError
from mlfilter_core.work.progress import Progress

Result = TypeVar("Result")

# Executions of one task that come no further, with those that died with their worker, before it is given up. Dask
# counts deaths alone; without this, a file that never commits before its worker leaves would be started for ever.
MAX_STARTS = 5
# How often a thread that waits for a task looks whether it was started too often: a matter of minutes.
LOOK_S = 5
# A task that takes longer has a progress bar of its own in the UI.
LONG_S = 60
RUN_SEPARATOR = "/"


class WorkerLostError(MlfilterError):
    """A task did not end: its workers did, before."""


class WorkerTaskRunner(DaskTaskRunner):  # type: ignore[misc]
    """Runs a task's function on a Dask worker, and all that Prefect does for it in the flow's process.

    `DaskTaskRunner` runs Prefect's engine on the worker, beside the function. That costs ten times the CPU
    (benchmarks/orchestration.py), carries the settings with their secrets to every worker, needs an API that
    every compute node reaches, and leaves a task run Running for ever where its worker dies
    (PrefectHQ/prefect#17384). Here, the engine runs in a thread that waits for the worker: states, retries and
    logs are those of the flow's process, and a worker that dies is an error like any other.
    """

    def __init__(self, logs: Path, **dask: Any) -> None:
        """Takes the arguments of `DaskTaskRunner`, and the folder of the workers' log files."""
        super().__init__(**dask)
        self._logs = logs
        # Threads are made as tasks need them: as many as are in flight.
        self._engines = ThreadPoolExecutor(sys.maxsize)
        self._ui = APILogHandler()
        # Of each task run: how often it was started without coming any further.
        self._starts: Counter[str] = Counter()
        self._has_progressed: set[str] = set()
        # Of each task run, and each of its files: how many documents were committed, at the most.
        self._committed: dict[str, dict[str, int]] = {}
        # Of each task run: how far its present file is.
        self._progress: dict[str, Progress] = {}
        # Takes what a worker, by its name, tells of a file.
        self.on_progress: Callable[[str, Progress], None] = lambda worker, progress: None
        self._runs: dict[str, Future] = {}
        self._is_ending = False

    def submit(
        self,
        task: Task[Any, Result],
        parameters: dict[str, Any],
        wait_for: Iterable[Any] | None = None,
        dependencies: dict[str, set[Any]] | None = None,
    ) -> PrefectConcurrentFuture[Result]:
        """Starts a task run; its function must not use Prefect, and what it returns must be picklable."""
        waiting = task.with_options()
        waiting.fn = expected_errors_as_states(self._on_worker(task.fn))
        task_run_id = uuid4()
        engine = self._engines.submit(
            copy_context().run,
            run_task_sync,
            task=waiting,
            task_run_id=task_run_id,
            parameters=parameters,
            wait_for=wait_for,
            return_type="state",
            dependencies=dependencies,
        )
        return PrefectConcurrentFuture(task_run_id, engine)  # type: ignore[arg-type]

    def cancel(self) -> None:
        """Ends the task runs that are under way, as Cancelled, and those that wait to be tried again."""
        self._is_ending = True
        for future in list(self._runs.values()):
            future.cancel()

    def __enter__(self) -> "WorkerTaskRunner":
        super().__enter__()
        self.client.subscribe_topic(TOPIC, self._hear)
        return self

    def __exit__(self, *error: Any) -> None:
        self.cancel()
        self._engines.shutdown()
        super().__exit__(*error)

    def _on_worker(self, function: Callable[..., Result]) -> Callable[..., Result]:
        @functools.wraps(function)
        def on_worker(*args: Any, **kwargs: Any) -> Result:
            arguments = inspect.signature(function).bind(*args, **kwargs).arguments
            run = _run_name()
            try:
                return self._executed(function, arguments, run)
            except KilledWorker as error:
                n, host = error.allowed_failures + 1, error.last_worker.host
                return _ended(  # type: ignore[no-any-return]
                    Crashed,
                    f"its worker died while running it, {n} times, last on {host}; {last_words(self._logs, run)}",
                )
            except CancelledError:
                return _ended(Cancelled, "the run ended before it was done")  # type: ignore[no-any-return]
            finally:
                _forget_assets()
                self._starts.pop(run, None)
                self._committed.pop(run, None)
                self._progress.pop(run, None)

        return on_worker

    def _executed(self, function: Callable[..., Result], arguments: dict[str, Any], run: str) -> Result:
        while True:
            # Dask groups tasks by what stands before the last dash.
            key = f"{function.__name__}-{uuid4().hex}"
            future = self.client.submit(run_on_worker, function, arguments, run, self._logs, key=key, pure=False)
            self._runs[run] = future
            self._has_progressed.discard(run)
            if self._is_ending:
                future.cancel()
            try:
                self._wait(future, run)
                result: Result | MlfilterError = future.result()
                if isinstance(result, MlfilterError):
                    raise result
                return result
            except KilledWorker:  # after some deaths, however much was done between them
                if run not in self._has_progressed:
                    raise
            finally:
                # A worker that dies takes the results it holds along, and Dask makes them again by running
                # finished tasks once more, unless they are released (PrefectHQ/prefect#15442).
                future.release()
                del self._runs[run]

    def _wait(self, future: Future, run: str) -> None:
        done = threading.Event()
        future.add_done_callback(lambda _: done.set())
        began, bar = time.monotonic(), ProgressArtifact(None)
        while not done.wait(LOOK_S):
            if time.monotonic() - began > LONG_S and run in self._progress:
                bar.show_file(self._progress[run])
            if self._starts[run] > MAX_STARTS:
                future.cancel()
                raise WorkerLostError(
                    f"it was started {self._starts[run]} times, and each time its worker ended before it came any "
                    "further; give the jobs more time (slurm_settings.time), or commit more often "
                    "(params.commit_documents)"
                )

    def _hear(self, event: tuple[float, dict[str, Any]]) -> None:
        """Takes what a worker tells; called in the Dask client's thread."""
        _, said = event
        run = said["run"]
        if said["event"] == STARTED:
            if run in self._runs:
                self._starts[run] += 1
            return
        if said["event"] == PROGRESSED:
            if run in self._runs:
                self._take_note(run, Progress(**said["progress"]), said["worker"])
            return
        record = logging.LogRecord(said["name"], said["level"], "", 0, said["message"], None, None)
        record.created = said["time"]
        record.flow_run_id, record.task_run_id = run.split(RUN_SEPARATOR)
        self._ui.handle(record)
        if record.levelno >= logging.INFO:
            logging.getLogger().handle(record)  # on the terminal

    def _take_note(self, run: str, progress: Progress, worker: str) -> None:
        committed = self._committed.setdefault(run, {})
        if progress.committed > committed.get(progress.file, 0):
            committed[progress.file] = progress.committed
            self._starts[run] = 0
            self._has_progressed.add(run)
        self._progress[run] = progress
        self.on_progress(worker, progress)


def _run_name() -> str:
    """Returns the ids of the flow run and of the task run."""
    context = TaskRunContext.get()
    assert context is not None, "the engine calls a task's function within the task run"
    return f"{context.task_run.flow_run_id}{RUN_SEPARATOR}{context.task_run.id}"


def _forget_assets() -> None:
    """Prefect keeps an entry for each task run of a flow, for assets, which there are none of."""
    flow_context, task_context = FlowRunContext.get(), TaskRunContext.get()
    if flow_context is not None and task_context is not None:
        flow_context.task_run_assets.pop(task_context.task_run.id, None)


def _ended(state: Callable[..., State[Any]], message: str) -> Any:
    return state(message=message, data=WorkerLostError(message))
