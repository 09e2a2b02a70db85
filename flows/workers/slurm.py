"""Workers in Slurm jobs, as many as the files that are left need."""

import asyncio
import concurrent.futures
import itertools
import logging
import math
import os
import shutil
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
from dask_jobqueue import SLURMCluster
from dask_jobqueue.slurm import SLURMJob
from distributed import Scheduler, SchedulerPlugin, Security
from distributed.core import Status
from prefect import get_run_logger

from flows.workers.job_guard import JobGuard, job_guard
from flows.workers.local import SCHEDULER_SETTINGS
from flows.workers.slurm_job import SlurmJob, lifetime_s, slurm_job
from flows.workers.task_runner import WorkerTaskRunner
from mlfilter_core.config.execution import SlurmSettings
from mlfilter_core.errors import ConfigError, JobError

# Slurm's controller serves the whole cluster: it is asked often only while something changes.
MIN_LOOK_S = 1
MAX_LOOK_S = 15
# Jobs submitted at a time, each by a process of its own.
SUBMITTED_AT_ONCE = 16
# A job that has just been submitted may not be in the queue yet.
GRACE_S = 10
# So many jobs in a row ended before their workers arrived: the next would as well.
MAX_STILLBORN = 3
# While others work, no job is submitted for so long after that.
PAUSE_S = 120
# Of sbatch, which asks a controller that may be busy.
LEAVE_S = 120
N_LAST_LINES = 15
# A controller that is only busy answers before.
MAX_UNANSWERED = 3
# What sbatch says where another try may go well.
PASSING = ("timed out", "temporarily unavailable", "Unable to contact", "Connection refused", "MaxSubmitJob")
# Why a job that waits would wait for ever.
HOPELESS = frozenset(
    ("DependencyNeverSatisfied", "BadConstraints", "PartitionConfig", "PartitionTimeLimit", "PartitionNodeLimit")
)


KEY_FILE = "key.pem"
CERTIFICATE_FILE = "certificate.pem"


class SlurmError(JobError):
    """Slurm does not run the jobs, and would not run others like them."""


class _Job(SLURMJob):  # type: ignore[misc]
    """A job of `dask_jobqueue`, watched by a guard."""

    def __init__(self, *args: Any, guard: JobGuard | None = None, id_position: int = -1, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._guard = guard
        self._id_position = id_position
        self.submitted = math.inf

    async def start(self) -> None:
        try:
            await super().start()
        except BaseException:
            self.status = Status.failed
            raise
        self.submitted = time.monotonic()
        if self._guard is not None:
            self._guard.watch(self.job_id)

    async def close(self) -> None:
        await super().close()
        self.status = Status.closed

    def _job_id_from_submit_output(self, out: str) -> str:
        words = out.split()
        job_id = words[self._id_position] if -len(words) <= self._id_position < len(words) else ""
        if not job_id.isdigit():
            raise ValueError(
                f"sbatch said {out.strip()!r}, of which word {self._id_position} is no job id; set "
                "slurm_settings.job_id_position (0 is the first word, -1 the last)"
            )
        return job_id


class _Cluster(SLURMCluster):  # type: ignore[misc]
    """A cluster whose jobs have names that are never used again: the scheduler may still know the last one."""

    job_cls = _Job

    def __init__(self, **kwargs: Any) -> None:
        self._numbers = itertools.count()
        super().__init__(**kwargs)

    def _new_worker_name(self, worker_number: int) -> str:
        return f"job-{next(self._numbers)}"


class _Arrivals(SchedulerPlugin):  # type: ignore[misc]
    """Notes the jobs whose workers came to the scheduler."""

    def __init__(self) -> None:
        self.jobs: set[str] = set()

    def add_worker(self, scheduler: Scheduler, worker: str) -> None:
        self.jobs.add(job_of(scheduler.workers[worker].name))


@dataclass(frozen=True)
class _Queued:
    """A job as squeue shows it."""

    state: str
    reason: str


@contextmanager
def slurm_workers(
    settings: SlurmSettings, one_per_core: bool, device: str, n_tasks: int, logs: Path
) -> Iterator["SlurmWorkers"]:
    """Starts a scheduler here, and workers in Slurm jobs as `tend` finds them needed.

    When the block ends, or this process is killed, the jobs are cancelled.

    Args:
        settings: Of the job file.
        one_per_core: Whether a job without GPUs holds a worker for each core, or one.
        device: Of the pipeline's job.
        n_tasks: Of the run.
        logs: Folder of the run's logs, which the nodes see as well.

    Raises:
        ConfigError: Slurm is not installed here, or the settings cannot be understood.
    """
    logging.getLogger("distributed").setLevel(logging.WARNING)
    if shutil.which("sbatch") is None:
        raise ConfigError("running_on_slurm: true, but there is no sbatch here; start the flow on a login node")
    if " " in str(logs.absolute()):
        raise ConfigError(
            f"slurm_settings.logging_dir: {logs} has a space, which the lines of a job's script cannot have"
        )
    job = slurm_job(settings, one_per_core, device, logs)
    Path(job.options["output"]).parent.mkdir(parents=True, exist_ok=True)
    folder = (logs / "dask").absolute()
    folder.mkdir(parents=True, exist_ok=True)
    if settings.security:
        _write_certificate(folder)
    # Jobs may wait for days, and a run without workers is one whose jobs wait.
    with job_guard() as guard, dask.config.set(SCHEDULER_SETTINGS):
        runner = WorkerTaskRunner(
            logs,
            cluster_class=_Cluster,
            cluster_kwargs={
                **job.arguments,
                "security": _security(folder) if settings.security else None,
                "guard": guard,
                "id_position": settings.job_id_position,
                "scheduler_options": {"dashboard_address": "127.0.0.1:0"},
            },
        )
        longest_s, _ = lifetime_s(job.options["time"])
        get_run_logger().info(
            "Slurm jobs of at most %s: workers leave after %d minutes, and the next go on with the files under way",
            job.options["time"],
            longest_s // 60,
        )
        try:
            with runner:
                workers = SlurmWorkers(runner, settings.max_jobs, job)
                try:
                    yield workers
                finally:
                    workers.leave()
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def job_script(settings: SlurmSettings, one_per_core: bool, device: str, logs: Path) -> str:
    """Returns the script that each job of a run would have; only the scheduler's address is not known yet."""
    security = _security((logs / "dask").absolute()) if settings.security else None
    protocol = "tls" if settings.security else "tcp"
    arguments = slurm_job(settings, one_per_core, device, logs).arguments
    address = f"{protocol}://<address of the flow's machine>:<port>"
    script: str = _Job(
        address, name="job-<number>", protocol=f"{protocol}://" if security else None, security=security, **arguments
    ).job_script()
    return script


class SlurmWorkers:
    """Keeps as many Slurm jobs as there are tasks for, and replaces those that end."""

    def __init__(self, runner: WorkerTaskRunner, max_jobs: int, job: SlurmJob) -> None:
        self.runner = runner
        self._cluster: Any = runner.client.cluster
        self._max_jobs = max_jobs
        self._job = job
        self._arrivals = _Arrivals()
        self._cluster.scheduler.add_plugin(self._arrivals)
        self._n_stillborn = 0
        self._n_unanswered = 0
        self._submit_after = 0.0
        self._looking: concurrent.futures.Future[None] | None = None
        self._look_after_s = float(MIN_LOOK_S)
        self._next_look = 0.0
        self._shown = ""
        self._news: deque[tuple[int, str]] = deque()

    def tend(self, n_tasks: int) -> int:
        """Looks after the jobs without waiting for Slurm, which may take minutes to answer."""
        while self._news:  # Prefect takes log lines from the flow's thread only
            get_run_logger().log(*self._news.popleft())
        if self._looking is not None and self._looking.done():
            looking, self._looking = self._looking, None
            looking.result()
        if self._looking is None and time.monotonic() >= self._next_look:
            self._looking = asyncio.run_coroutine_threadsafe(self._look(n_tasks), self._cluster.loop.asyncio_loop)
        return self._n_workers()

    def leave(self) -> None:
        """Waits for what is being submitted, so that no job is left that nobody knows of."""
        if self._looking is not None:
            concurrent.futures.wait([self._looking], timeout=LEAVE_S)

    def _n_workers(self) -> int:
        return len(self._cluster.scheduler.workers)

    async def _look(self, n_tasks: int) -> None:
        before = self._shown, self._n_workers()
        try:
            await self._adapt(n_tasks)
        finally:
            changed = before != (self._shown, self._n_workers())
            self._look_after_s = MIN_LOOK_S if changed else min(self._look_after_s * 1.5, MAX_LOOK_S)
            self._next_look = time.monotonic() + self._look_after_s

    async def _adapt(self, n_tasks: int) -> None:
        try:
            queue = await _squeue()
        except RuntimeError as error:
            self._miss(error)
            return
        self._n_unanswered = 0
        for name, job in list(self._cluster.workers.items()):
            if job.job_id not in queue and time.monotonic() - job.submitted > GRACE_S:
                await self._take_leave(name, job.job_id)
        n_needed = min(self._max_jobs, math.ceil(n_tasks / self._job.n_workers))
        n_more = n_needed - len(self._cluster.worker_spec)
        if n_more > 0 and time.monotonic() >= self._submit_after:
            await self._submit(min(n_more, SUBMITTED_AT_ONCE))
        elif n_more < 0:
            await self._cluster.scale_down(self._idle_jobs()[:-n_more])
        self._show(queue)

    async def _submit(self, n_jobs: int) -> None:
        for _ in range(n_jobs):
            self._cluster.worker_spec.update(self._cluster.new_worker_spec())
        try:
            await self._cluster
        except (RuntimeError, ValueError) as error:
            failed = [name for name, job in self._cluster.workers.items() if job.job_id is None]
            for name in failed:
                self._forget(name)
            if not self._cluster.workers and not any(sign in str(error) for sign in PASSING):
                raise SlurmError(f"sbatch refused the job: {_essence(error)}") from error
            self._warn(f"{len(failed)} jobs were refused, and are tried again: {_essence(error)}")

    async def _take_leave(self, name: str, job_id: str) -> None:
        """Lets another job take the place of one that ended."""
        self._forget(name)
        state, log_file = await _ended(job_id)
        if name in self._arrivals.jobs:
            self._n_stillborn = 0
            self._news.append((logging.INFO, f"Slurm job {job_id} ended ({state})"))
            return
        self._n_stillborn += 1
        last_words = _tail(log_file)
        self._warn(f"Slurm job {job_id} ended ({state}) before its workers arrived: {last_words}")
        if self._n_stillborn < MAX_STILLBORN:
            return
        # A broken node draws jobs: each ends at once, and the next goes there. Others may be well.
        self._submit_after = time.monotonic() + PAUSE_S
        if not self._n_workers():
            raise SlurmError(
                f"{self._n_stillborn} jobs in a row ended before their workers arrived, the last as {state}. "
                f"`ml_filter job-script` shows what they run. The end of {log_file}:\n{last_words}"
            )

    def _miss(self, error: Exception) -> None:
        """Bears with a controller of Slurm that restarts, for hours if need be, but not with one that never was."""
        self._n_unanswered += 1
        if not self._shown and self._n_unanswered >= MAX_UNANSWERED:
            raise SlurmError(f"squeue does not answer: {_essence(error)}") from error
        if self._n_unanswered == MAX_UNANSWERED:
            self._warn(f"squeue does not answer, and is asked again and again: {_essence(error)}")

    def _warn(self, message: str) -> None:
        self._news.append((logging.WARNING, message))

    def _forget(self, name: str) -> None:
        job = self._cluster.workers.pop(name)
        job.status = Status.closed  # Dask asserts at the end that each job was closed, or failed to start
        del self._cluster.worker_spec[name]

    def _idle_jobs(self) -> list[str]:
        """Returns the jobs that hold no task: first those without workers, which mostly wait in the queue."""
        n_tasks: Counter[str] = Counter()
        for worker in self._cluster.scheduler.workers.values():
            n_tasks[job_of(worker.name)] += len(worker.processing)
        idle = [name for name in self._cluster.worker_spec if n_tasks[name] == 0]
        return sorted(idle, key=lambda name: name in n_tasks)

    def _show(self, queue: dict[str, _Queued]) -> None:
        """Tells how many jobs there are, where that has changed."""
        jobs = [queue[job.job_id] for job in self._cluster.workers.values() if job.job_id in queue]
        reasons = Counter(job.reason for job in jobs if job.state == "PD")
        hopeless = HOPELESS & reasons.keys()
        if hopeless and sum(reasons.values()) == len(jobs):
            raise SlurmError(
                f"Slurm would never run the jobs ({', '.join(hopeless)}); compare slurm_settings with what "
                "`scontrol show partition` allows"
            )
        waiting = f", {sum(reasons.values())} waiting ({', '.join(sorted(reasons))})" if reasons else ""
        shown = f"Slurm jobs: {len(jobs) - sum(reasons.values())} running{waiting}; {self._n_workers()} workers"
        if shown != self._shown:
            self._shown = shown
            self._news.append((logging.INFO, shown))


def job_of(worker: str) -> str:
    """Returns the job of a worker: `job-3` of `job-3`, and of `job-3-1`, where a job holds several."""
    return "-".join(worker.split("-")[:2])


async def _squeue() -> dict[str, _Queued]:
    """Returns this user's jobs that have not ended, by id."""
    lines = await _Job._call(["squeue", "--me", "--noheader", "--format=%i|%t|%r"])
    jobs = [line.strip().split("|", 2) for line in lines.splitlines()]
    return {job_id: _Queued(state, reason) for job_id, state, reason in jobs if state != "CG"}


async def _ended(job_id: str) -> tuple[str, Path]:
    """Returns how a job ended, and its log file; Slurm remembers both for some minutes."""
    try:
        shown = await _Job._call(["scontrol", "--oneliner", "show", "job", job_id])
    except RuntimeError:
        return "unknown", Path("unknown")
    facts = dict(fact.split("=", 1) for fact in shown.split() if "=" in fact)
    return f"{facts['JobState']}, exit code {facts['ExitCode']}", Path(facts["StdErr"])


def _tail(path: Path) -> str:
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError as error:
        return f"({error})"
    return "\n".join(lines[-N_LAST_LINES:]) or "(empty)"


def _essence(error: Exception) -> str:
    """Returns what a command wrote to its standard error, of what dask-jobqueue says about it."""
    return str(error).rpartition("stderr:\n")[2].strip()


def _write_certificate(folder: Path) -> None:
    """Writes a key and a certificate for one run to files that their owner alone can read."""
    made = Security.temporary()
    folder.chmod(0o700)
    for name, content in ((KEY_FILE, made.tls_worker_key), (CERTIFICATE_FILE, made.tls_worker_cert)):
        path = folder / name
        path.unlink(missing_ok=True)  # of a run of the same name that was killed
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(content)


def _security(folder: Path) -> Security:
    """Lets in who has the run's key, and nobody else: Dask's scheduler executes what its clients send."""
    key, certificate = str(folder / KEY_FILE), str(folder / CERTIFICATE_FILE)
    roles = ("client", "scheduler", "worker")
    return Security(
        require_encryption=True,
        tls_ca_file=certificate,
        **{f"tls_{role}_key": key for role in roles},
        **{f"tls_{role}_cert": certificate for role in roles},
    )
