"""Keeps as many workers in Slurm jobs as the unfinished tasks need."""

import asyncio
import concurrent.futures
import itertools
import logging
import math
import time
from collections import Counter, deque
from typing import Any

from flows.workers.slurm_job import SlurmJob
from flows.workers.slurm_nodes import SlurmNodes, job_of
from flows.workers.slurm_queue import EndedJob, QueuedJob, SlurmCommandError, queued_jobs
from flows.workers.task_runner import WorkerTaskRunner
from mlfilter_core.errors import JobError

_log = logging.getLogger(__name__)

# Slurm's controller serves the whole cluster: it is asked often only while something changes.
MIN_LOOK_S = 1
MAX_LOOK_S = 15
# Jobs submitted at a time, each by a separate process.
SUBMITTED_AT_ONCE = 16
# After this many jobs in a row that ended before their workers connected, the next would end as well.
MAX_STILLBORN = 3
# While other workers work, no job is submitted for this long after that.
PAUSE_S = 120
# Time that sbatch gets to finish: it asks a controller that may be busy.
LEAVE_S = 120
# Failures of squeue in a row after which Slurm counts as down: a controller that is only busy answers before.
MAX_UNANSWERED = 3


class SlurmError(JobError):
    """Slurm does not run the jobs, and would not run others like them."""


class SlurmWorkers:
    """Keeps as many Slurm jobs as the tasks need, and replaces those that end."""

    def __init__(self, runner: WorkerTaskRunner, max_jobs: int, job: SlurmJob) -> None:
        """Takes a runner on a `SLURMCluster`, the most jobs at a time, and what each of them is."""
        self.runner = runner
        self._cluster: Any = runner.client.cluster
        self._max_jobs = max_jobs
        self._job = job
        # Names are never used again, as Dask's own are: the scheduler may still know the last job of that name.
        self._numbers = itertools.count()
        self._nodes = SlurmNodes(self._warn, runner, job.options)
        self._cluster.scheduler.add_plugin(self._nodes)
        runner.is_given_up = self._nodes.is_excluded
        runner.on_healed = self._nodes.blame_unlike
        self._n_stillborn = 0
        self._n_unanswered = 0
        self._submit_after = 0.0
        self._looking: concurrent.futures.Future[None] | None = None
        self._look_after_s = float(MIN_LOOK_S)
        self._next_look = 0.0
        self._shown = ""
        self._news: deque[tuple[int, str]] = deque()

    def tend(self, n_tasks: int) -> int:
        """Submits, replaces and cancels jobs in the background: Slurm may take minutes to answer."""
        while self._news:  # Prefect accepts log lines from the flow's thread only
            _log.log(*self._news.popleft())
        if self._looking is not None and self._looking.done():
            looking, self._looking = self._looking, None
            looking.result()
        if self._looking is None and (time.monotonic() >= self._next_look or self._nodes.has_news):
            self._looking = asyncio.run_coroutine_threadsafe(self._look(n_tasks), self._cluster.loop.asyncio_loop)
        return self._n_workers()

    def node_of(self, worker: str) -> str:
        return self._nodes.node_of(worker)

    def blame(self, worker: str, kind: str, task: str) -> None:
        self._nodes.blame(worker, kind, task)

    def remarks(self) -> list[str]:
        return self._nodes.remarks()

    def leave(self) -> None:
        """Waits for active submissions, so that the run knows every job in the queue."""
        if self._looking is not None:
            concurrent.futures.wait([self._looking], timeout=LEAVE_S)

    def _n_workers(self) -> int:
        return len(self._cluster.scheduler.workers)

    async def _look(self, n_tasks: int) -> None:
        before = self._shown, self._n_workers()
        self._nodes.has_news = False
        try:
            await self._adapt(n_tasks)
        finally:
            changed = before != (self._shown, self._n_workers())
            self._look_after_s = MIN_LOOK_S if changed else min(self._look_after_s * 1.5, MAX_LOOK_S)
            self._next_look = time.monotonic() + self._look_after_s

    async def _adapt(self, n_tasks: int) -> None:
        try:
            queue = await queued_jobs()
        except SlurmCommandError as error:
            self._count_unanswered(error)
            return
        self._n_unanswered = 0
        for name, job in list(self._cluster.workers.items()):
            if (ended := await job.ended(queue)) is not None:
                self._remove_ended(name, job.job_id, ended)
        self._nodes.locate(
            {name: queue[job.job_id] for name, job in self._cluster.workers.items() if job.job_id in queue}
        )
        await self._leave_excluded_nodes()
        n_needed = min(self._max_jobs, math.ceil(n_tasks / self._job.n_workers))
        n_more = n_needed - len(self._cluster.worker_spec)
        if n_more > 0 and time.monotonic() >= self._submit_after:
            await self._submit(min(n_more, SUBMITTED_AT_ONCE))
        elif n_more < 0:
            await self._cluster.scale_down(self._idle_jobs()[:-n_more])
        jobs = [queue[job.job_id] for job in self._cluster.workers.values() if job.job_id in queue]
        if jobs and all(job.has_no_node for job in jobs) and self._nodes.readmit("no other node can run the jobs"):
            await self._cluster.scale_down(list(self._cluster.worker_spec))  # the next ones exclude no node
            return
        self._show(jobs)

    async def _submit(self, n_jobs: int) -> None:
        for number in itertools.islice(self._numbers, n_jobs):
            self._cluster.worker_spec[f"job-{number}"] = self._new_spec()
        try:
            await self._cluster
        except SlurmCommandError as error:
            refused = [name for name, job in self._cluster.workers.items() if job.job_id is None]
            for name in refused:
                self._forget(name)
            if not error.is_temporary and self._nodes.readmit(f"sbatch refuses jobs that may not run there ({error})"):
                return
            if not self._cluster.workers and not error.is_temporary:
                raise SlurmError(f"sbatch refused the job: {error}") from error
            self._warn(f"sbatch refused {len(refused)} jobs, which will be submitted again: {error}")

    def _new_spec(self) -> dict[str, Any]:
        """Returns what Dask needs to know of a further job."""
        spec: dict[str, Any] = self._cluster.new_spec
        if exclude := self._nodes.to_exclude:
            spec = {**spec, "options": {**spec["options"], "exclude": exclude}}
        return spec

    async def _leave_excluded_nodes(self) -> None:
        """Cancels jobs on nodes that are not used again, and ends idle workers there.

        Jobs that run tasks are left alone, unless their workers go on dying.
        """
        idle, scheduler = self._idle_jobs(), self._cluster.scheduler
        jobs = self._nodes.jobs_on_excluded(self._cluster.worker_spec)
        await self._cluster.scale_down([name for name in jobs if name in idle or self._nodes.has_lost_workers(name)])
        workers = [address for address, worker in scheduler.workers.items() if not worker.processing]
        if unwanted := [address for address in workers if self._nodes.is_excluded(address)]:
            await scheduler.retire_workers(unwanted, close_workers=True)

    def _remove_ended(self, name: str, job_id: str, ended: EndedJob) -> None:
        """Forgets a job that has ended, so that another is submitted in its place."""
        self._forget(name)
        was_bad_node = self._nodes.end(name, job_id, ended)
        if name in self._nodes.jobs:
            self._n_stillborn = 0
            self._news.append((logging.INFO, f"Slurm job {job_id} ended ({ended.state})"))
            return
        self._n_stillborn += 1
        last_lines = ended.last_lines()
        where = f" on {ended.node}" if ended.node else ""
        self._warn(f"Slurm job {job_id} ended ({ended.state}){where} before its workers connected: {last_lines}")
        if was_bad_node:
            self._n_stillborn = 0
        if self._n_stillborn < MAX_STILLBORN:
            return
        # A broken node attracts jobs: each one fails at once, and the next is sent there. Other nodes may be healthy.
        self._submit_after = time.monotonic() + PAUSE_S
        if not self._n_workers():
            raise SlurmError(
                f"{self._n_stillborn} jobs in a row ended before their workers connected, the last{where} as "
                f"{ended.state}. "
                f"`ml_filter job-script` shows what they run. The end of {ended.log}:\n{last_lines}"
            )

    def _count_unanswered(self, error: SlurmCommandError) -> None:
        """Raises an error if squeue never answered; a controller that restarts may be silent for hours."""
        self._n_unanswered += 1
        if not self._shown and self._n_unanswered >= MAX_UNANSWERED:
            raise SlurmError(f"squeue does not answer: {error}") from error
        if self._n_unanswered == MAX_UNANSWERED:
            self._warn(f"squeue does not answer; it is asked again until it does: {error}")

    def _warn(self, message: str) -> None:
        self._news.append((logging.WARNING, message))

    def _forget(self, name: str) -> None:
        self._cluster.workers.pop(name).mark_closed()
        del self._cluster.worker_spec[name]

    def _idle_jobs(self) -> list[str]:
        """Returns the jobs that run no task; those without workers, most of them pending, come first."""
        n_tasks: Counter[str] = Counter()
        for worker in self._cluster.scheduler.workers.values():
            n_tasks[job_of(worker.name)] += len(worker.processing)
        idle = [name for name in self._cluster.worker_spec if n_tasks[name] == 0]
        return sorted(idle, key=lambda name: name in n_tasks)

    def _show(self, jobs: list[QueuedJob]) -> None:
        """Logs how many jobs there are, if that has changed.

        Raises:
            SlurmError: Slurm will never run any of them.
        """
        reasons = Counter(job.reason for job in jobs if job.is_pending)
        hopeless = {job.reason for job in jobs if job.is_hopeless}
        if hopeless and reasons.total() == len(jobs):
            raise SlurmError(
                f"Slurm would never run the jobs ({', '.join(sorted(hopeless))}); compare slurm_settings with what "
                "`scontrol show partition` allows"
            )
        pending = f", {reasons.total()} pending ({', '.join(sorted(reasons))})" if reasons else ""
        shown = f"Slurm jobs: {len(jobs) - reasons.total()} running{pending}; {self._n_workers()} workers"
        if shown != self._shown:
            self._shown = shown
            self._news.append((logging.INFO, shown))
