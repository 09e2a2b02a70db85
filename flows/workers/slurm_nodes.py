"""What goes wrong on which node: deaths of workers, jobs and tasks that fail, slow tasks."""

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from distributed import Scheduler, SchedulerPlugin

from flows.workers.nodes import DIED, FAILED, STILLBORN, Nodes
from flows.workers.slurm_queue import EndedJob, QueuedJob
from flows.workers.task_runner import WorkerTaskRunner

EXCLUDE_VARIABLE = "SBATCH_EXCLUDE"  # overrides the option in a job's script, and is overridden by the command line
UNKNOWN = "unknown"


class SlurmNodes(SchedulerPlugin):  # type: ignore[misc]
    """Follows the workers of Slurm jobs; called by Dask's scheduler when one comes or goes.

    A worker that disappears may have died, or its job was cancelled, preempted or requeued, which is no fault of its
    node. It has died if its nanny, the process that watches it, starts another one, or if its job fails.

    Attributes:
        jobs: Names of the jobs whose workers have connected.
        has_news: Whether something has gone wrong since the last look at the queue.
    """

    def __init__(self, say: Callable[[str], None], runner: WorkerTaskRunner, options: Mapping[str, str]) -> None:
        """Takes the function that warns a person, the runner of the tasks, and the options of the jobs."""
        self.jobs: set[str] = set()
        self.has_news = False
        self._nodes = Nodes(say, may_exclude="nodelist" not in options)
        self._runner = runner
        self._excluded_by_user = os.environ.get(EXCLUDE_VARIABLE) or options.get("exclude", "")
        self._node_of_job: dict[str, str] = {}
        self._worker: dict[str, tuple[str, str]] = {}  # job and nanny, by address
        self._lost: dict[str, list[str]] = {}  # tasks of workers that disappeared, by nanny
        self._unlocated: list[tuple[str, str, str]] = []  # job, kind and task

    @property
    def to_exclude(self) -> str:
        """Value of `--exclude` for further jobs, with what the user excludes; empty if no node is to be excluded."""
        own = self._nodes.excluded
        return ",".join(filter(None, (self._excluded_by_user, *own))) if own else ""

    def remarks(self) -> list[str]:
        """Returns what the report of the run says about nodes."""
        return self._nodes.remarks()

    def node_of(self, worker: str) -> str:
        """Returns the name of the node of a worker, by its address."""
        return self._node_of_job.get(self._worker.get(worker, ("", ""))[0], UNKNOWN)

    def is_excluded(self, worker: str) -> bool:
        """Returns whether a worker, given by its address, is on a node that is not used again."""
        return bool(self.jobs_on_excluded([self._worker.get(worker, ("", ""))[0]]))

    def jobs_on_excluded(self, jobs: Iterable[str]) -> list[str]:
        """Returns those of some jobs, by name, that are on nodes that are not used again."""
        return [job for job in jobs if self._node_of_job.get(job) in self._nodes.excluded]

    def has_lost_workers(self, job: str) -> bool:
        """Returns whether workers of a job have disappeared with their tasks, and not come back."""
        return any(self._lost.get(nanny) for name, nanny in self._worker.values() if name == job)

    def blame(self, worker: str, kind: str, task: str) -> None:
        """Notes that something went wrong in a worker, given by its address."""
        if (known := self._worker.get(worker)) is not None:
            self._blame_job(known[0], kind, task)

    def blame_unlike(self, failed: str, healthy: str, task: str) -> None:
        """Notes that a task failed in a worker, and then succeeded in another; workers of one node share its fate."""
        if self.node_of(failed) != self.node_of(healthy):
            self.blame(failed, FAILED, task)

    def readmit(self, why: str) -> bool:
        """Uses all nodes again; returns whether any was excluded."""
        had_any = bool(self.to_exclude)
        self._nodes.readmit(why)
        return had_any

    def locate(self, jobs: Mapping[str, QueuedJob]) -> None:
        """Takes the running jobs, by name."""
        for name, job in jobs.items():
            if job.node:
                self._node_of_job[name] = job.node
                self._see(name)
        known = [fault for fault in self._unlocated if fault[0] in self._node_of_job]
        self._unlocated = [fault for fault in self._unlocated if fault not in known]
        for job_name, kind, task in known:
            self._nodes.blame(self._node_of_job[job_name], kind, task)

    def end(self, name: str, job_id: str, ended: EndedJob) -> bool:
        """Takes the end of a job; returns whether its node is not used again because of it."""
        before = self._nodes.excluded
        if ended.node:
            self._node_of_job[name] = ended.node
        if name not in self.jobs and ended.is_fault:
            self._blame_job(name, STILLBORN, f"Slurm job {job_id}")
        nannies = {nanny for job, nanny in self._worker.values() if job == name}
        tasks = [task for nanny in nannies for task in self._lost.pop(nanny, [])]
        if tasks and ended.is_fault:
            self._blame_job(name, DIED, tasks[0])
        return self._nodes.excluded != before

    def add_worker(self, scheduler: Scheduler, worker: str) -> None:
        state = scheduler.workers[worker]
        job = job_of(state.name)
        self.jobs.add(job)
        self._worker[worker] = job, state.nanny
        self._see(job)
        for task in self._lost.pop(state.nanny, []):
            self._blame_job(job, DIED, task)

    def log_event(self, topic: str, msg: Any) -> None:
        if topic != "all" or msg.get("action") != "remove-worker" or msg["expected"]:
            return
        worker = msg["worker"]
        if tasks := [] if self._runner.has_stopped(worker) else self._runner.names_of(msg["processing-tasks"]):
            self._lost[self._worker[worker][1]] = tasks
            self.has_news = True

    def _see(self, job: str) -> None:
        if job in self.jobs and job in self._node_of_job:
            self._nodes.see(self._node_of_job[job])

    def _blame_job(self, job: str, kind: str, task: str) -> None:
        self.has_news = True
        if (node := self._node_of_job.get(job)) is None:
            self._unlocated.append((job, kind, task))  # it began after the last look at the queue
        else:
            self._nodes.blame(node, kind, task)


def job_of(worker: str) -> str:
    """Returns the name of a worker's job: `job-3` for `job-3`, and for `job-3-1`, one of several workers in it."""
    return "-".join(worker.split("-")[:2])
