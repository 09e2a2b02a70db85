"""Which nodes a run does not use again, because too much has gone wrong on them.

Knows nothing about Dask and Slurm.
"""

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from mlfilter_core.wording import plural

# The third time that workers die, fail or are slow on one node is no accident. Arbitrary.
MAX_FAULTS = 3
# If more nodes than this share look bad, it is the files, the software or the network. One node may always be left out.
MAX_EXCLUDED_SHARE = 1 / 3
N_SHOWN = 3

# What can go wrong on a node.
DIED = "a worker died"
STILLBORN = "a job ended before its workers connected"
FAILED = "a task failed and then succeeded on another node"
SLOW = "a worker was far slower than others"


@dataclass(frozen=True)
class _Fault:
    """One thing that went wrong.

    Attributes:
        node: Name of the node.
        kind: What happened.
        task: Name of the task, or of the job if there was none.
    """

    node: str
    kind: str
    task: str


class Nodes:
    """The nodes of a run, and what went wrong on each; may be used by several threads."""

    def __init__(self, say: Callable[[str], None], may_exclude: bool = True) -> None:
        """Takes the function that warns a person, and whether the run may leave nodes out at all."""
        self._say = say
        self._may_exclude = may_exclude
        self._seen: set[str] = set()
        self._faults: list[_Fault] = []
        self._faulty_tasks: set[str] = set()
        self._excluded: list[str] = []
        self._kept: set[str] = set()  # with too many faults, but used
        self._readmitted: set[str] = set()
        self._lock = threading.RLock()

    @property
    def excluded(self) -> tuple[str, ...]:
        """The nodes that are not used again."""
        return tuple(self._excluded)

    def see(self, node: str) -> None:
        """Notes a node on which a worker has started."""
        self._seen.add(node)

    def blame(self, node: str, kind: str, task: str) -> None:
        """Notes what went wrong on a node, which may exclude it.

        A task that has trouble on two nodes is itself the cause, and does not count for any.
        """
        with self._lock:
            if task in self._faulty_tasks:
                return
            if any(fault.task == task and fault.node != node for fault in self._faults):
                self._absolve(task)
                return
            self._faults.append(_Fault(node, kind, task))
            if self._n_faults(node) >= MAX_FAULTS and node not in self._excluded:
                self._exclude(node)

    def readmit(self, why: str) -> None:
        """Uses all nodes again."""
        with self._lock:
            for node in self._excluded:
                self._say(f"node {node} is used again: {why}")
            self._kept.update(self._excluded)
            self._readmitted.update(self._excluded)
            self._excluded.clear()

    def remarks(self) -> list[str]:
        """Returns a line for each node with too many faults, for the report of the run."""
        with self._lock:
            return [f"{_left_out(node)}: {self._why(node)}" for node in self._excluded] + [
                f"{_kept(node)}: {self._why(node)}" for node in sorted(self._kept)
            ]

    def _exclude(self, node: str) -> None:
        n_most = max(1, int(len(self._seen) * MAX_EXCLUDED_SHARE))
        others = self._seen - {node} - set(self._excluded)
        is_possible = self._may_exclude and node not in self._readmitted
        if is_possible and others and len(self._excluded) < n_most:
            self._kept.discard(node)
            self._excluded.append(node)
            self._say(f"{_left_out(node)}: {self._why(node)}")
        elif node not in self._kept:
            self._kept.add(node)
            self._say(f"{_kept(node)}, as too few others are left: {self._why(node)}")

    def _absolve(self, task: str) -> None:
        self._faulty_tasks.add(task)
        self._faults = [fault for fault in self._faults if fault.task != task]
        for node in [node for node in self._excluded if self._n_faults(node) < MAX_FAULTS]:
            self._excluded.remove(node)
            self._say(f"node {node} is used again: {task} has the same trouble on another node")
        self._kept = {node for node in self._kept if self._n_faults(node) >= MAX_FAULTS}

    def _n_faults(self, node: str) -> int:
        return sum(fault.node == node for fault in self._faults)

    def _why(self, node: str) -> str:
        """Returns what happened on a node: `a worker died (2 times: a.jsonl, b.jsonl); ...`."""
        own = [fault for fault in self._faults if fault.node == node]
        parts = []
        for kind, n in Counter(fault.kind for fault in own).items():
            tasks = list(dict.fromkeys(fault.task for fault in own if fault.kind == kind))
            shown = ", ".join(tasks[:N_SHOWN]) + (", ..." if len(tasks) > N_SHOWN else "")
            parts.append(f"{kind} ({plural(n, 'time')}: {shown})")
        return "; ".join(parts)


def _left_out(node: str) -> str:
    return f"node {node} is not used again in this run"


def _kept(node: str) -> str:
    return f"node {node} is used in spite of what happened there"
