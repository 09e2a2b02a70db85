"""Workers that take over the file of one that is far slower, at the end of a run."""

import logging
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from flows.running.fan_out import Workers
from flows.watching.speeds import Straggler
from flows.workers.nodes import SLOW
from flows.workers.task_runner import WorkerTaskRunner
from mlfilter_core.wording import duration

# How often speeds are compared; they are those of a minute.
LOOK_S = 5.0
# What a worker needs before its first batch: to end the other one, and to load the encoder. A minute on a slow disk.
START_S = 60.0
# A file is taken over only if that is so many times as fast as to wait: estimates are rough, and work is lost.
GAIN = 2

_log = logging.getLogger(__name__)


class LocatedWorkers(Workers, Protocol):
    """Workers on nodes, some of which may be bad."""

    def node_of(self, worker: str) -> str:
        """Returns the name of the node of a worker that has begun a task, by its address."""

    def blame(self, worker: str, kind: str, task: str) -> None:
        """Notes what went wrong in a worker that has begun a task; its node may not be used again.

        Args:
            worker: Address of the worker.
            kind: What happened, one of `flows.workers.nodes`.
            task: Name of the task.
        """

    def remarks(self) -> list[str]:
        """Returns what the report of the run says about the nodes."""


class TakingOver:
    """The workers of a run, which say which of them are far slower than the others.

    When no task is left for a worker, it takes over the file of the slowest one after its last commit, once for each
    file. A task cannot be interrupted: the process of the slow worker is ended.
    """

    def __init__(self, workers: LocatedWorkers, stragglers: Callable[[], Sequence[Straggler]]) -> None:
        """Takes the workers, and the function that returns the files that are far slower, the slowest first."""
        self._workers = workers
        self._stragglers = stragglers
        self._wanted: list[Straggler] = []
        self._next_look = 0.0
        self._said: set[tuple[str, str]] = set()
        self._taken_over: set[str] = set()

    @property
    def runner(self) -> WorkerTaskRunner:
        return self._workers.runner

    def tend(self, n_tasks: int) -> int:
        if time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + LOOK_S
            self._look()
        # For each file that was taken over, a slow worker starts again, and is no help.
        n_slow = len(self._taken_over)
        n_workers = self._workers.tend(n_tasks + len(self._wanted) + n_slow)
        if self._wanted and n_workers - n_slow > n_tasks:
            self._take_over(self._wanted.pop(0))
        return n_workers

    def _look(self) -> None:
        self._wanted = []
        for slow in self._stragglers():
            file, worker = slow.progress.file, self.runner.address_of(slow.worker)
            if not self.runner.executes(worker, file):
                continue
            if (file, slow.worker) not in self._said:
                self._said.add((file, slow.worker))
                _log.warning(
                    "%s: its worker is far slower than the others: %s %s/s on node %s (%s); the median is %s; %s",
                    *(file, _rounded(slow.speed), slow.unit, self._workers.node_of(worker), slow.worker),
                    *(_rounded(slow.others), _left(slow)),
                )
                self._workers.blame(worker, SLOW, file)
            if file not in self._taken_over and slow.left_s > GAIN * (START_S + slow.left_elsewhere_s):
                self._wanted.append(slow)

    def _take_over(self, slow: Straggler) -> None:
        file, worker = slow.progress.file, self.runner.address_of(slow.worker)
        if not self.runner.executes(worker, file):
            return
        self._taken_over.add(file)
        _log.warning(
            "%s is taken from %s, and continues on another worker after %d committed documents",
            *(file, slow.worker, slow.progress.committed),
        )
        self.runner.stop(worker)


def _left(slow: Straggler) -> str:
    return f"about {duration(slow.left_s)} are left at this speed" if slow.speed else "it has come to a halt"


def _rounded(speed: float) -> str:
    return f"{speed:,.0f}" if speed >= 10 else f"{speed:.1f}"
