"""Slurm's queue: submits jobs, asks for their states, cancels them. Knows nothing about how many are needed."""

import asyncio
import math
import shlex
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dask_jobqueue.slurm import SLURMJob
from distributed.core import Status

from flows.workers.job_guard import JobGuard

# Output of sbatch after which another attempt may succeed.
TEMPORARY = ("timed out", "temporarily unavailable", "Unable to contact", "Connection refused", "MaxSubmitJob")
# Reasons for which a pending job would stay pending forever.
HOPELESS = frozenset(
    ("DependencyNeverSatisfied", "BadConstraints", "PartitionConfig", "PartitionTimeLimit", "PartitionNodeLimit")
)
# Parts of the reasons for which a job is pending while nodes are drained, down or reserved.
UNAVAILABLE = ("NotAvail", "DOWN", "unavailable")
UNFINISHED = ("PENDING", "RUNNING", "CONFIGURING", "SUSPENDED", "REQUEUED", "RESIZING")
UNKNOWN = "unknown"
# States of jobs that ended by themselves, and not well; others were cancelled, preempted or at their time limit.
FAULTS = ("FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL")
# A job that has just been submitted may not be listed yet.
GRACE_S = 10
# A job that was never listed, and of which nothing is known, may be one of another cluster: it is not replaced earlier.
UNSEEN_S = 600
N_LAST_LINES = 15
NO_NODE = "(null)"


class SlurmCommandError(Exception):
    """A command of Slurm failed; the message is what it printed."""

    @property
    def is_temporary(self) -> bool:
        """Whether another attempt may succeed."""
        return any(sign in str(self) for sign in TEMPORARY)


@dataclass(frozen=True)
class QueuedJob:
    """A job that is pending or running.

    Attributes:
        is_pending: Whether it has not started yet.
        reason: Why it is pending, in Slurm's words.
        node: Name of its node; empty if it is pending.
    """

    is_pending: bool
    reason: str
    node: str = ""

    @property
    def is_hopeless(self) -> bool:
        """Whether Slurm will never run it."""
        return self.is_pending and self.reason in HOPELESS

    @property
    def has_no_node(self) -> bool:
        """Whether no node that it may run on is there, at least now."""
        return self.is_hopeless or (self.is_pending and any(sign in self.reason for sign in UNAVAILABLE))


@dataclass(frozen=True)
class EndedJob:
    """A job that has ended.

    Attributes:
        state: Slurm's state and the exit code.
        log: File with what the job printed.
        node: Name of its node; empty if it had none, or if that is unknown.
    """

    state: str
    log: Path
    node: str = ""

    @property
    def is_fault(self) -> bool:
        """Whether something went wrong in the job or on its node."""
        return self.state.startswith(FAULTS)

    def last_lines(self) -> str:
        """Returns the end of the log."""
        try:
            lines = self.log.read_text(errors="replace").splitlines()
        except OSError as error:
            return f"({error})"
        return "\n".join(lines[-N_LAST_LINES:]) or "(empty)"


class SubmittedJob(SLURMJob):  # type: ignore[misc]
    """A job of `dask_jobqueue`, which submits and cancels it; cancelled as well if this process is killed."""

    def __init__(
        self, *args: Any, guard: JobGuard | None = None, id_position: int = -1, exclude: str = "", **kwargs: Any
    ) -> None:
        """Takes the arguments of `SLURMJob` and further ones.

        Args:
            *args: Arguments of `SLURMJob`.
            guard: The guard that cancels the job if this process is killed.
            id_position: Position of the job's id among the words that sbatch prints.
            exclude: Nodes on which the job is not to run, separated by commas.
            **kwargs: Arguments of `SLURMJob`.
        """
        super().__init__(*args, **kwargs)
        if exclude:  # on the command line, which overrides both the script and SBATCH_EXCLUDE
            self.submit_command = f"{SLURMJob.submit_command} --exclude={shlex.quote(exclude)}"
        self.job_id_regexp = _word_pattern(id_position)
        self._guard = guard
        self._id_position = id_position
        self._submitted = math.inf
        self._was_listed = False

    async def start(self) -> None:
        """Submits the job.

        Raises:
            SlurmCommandError: sbatch refused it.
        """
        try:
            await super().start()
        except BaseException as error:
            self.status = Status.failed
            if isinstance(error, RuntimeError):
                raise SlurmCommandError(str(error).rpartition("stderr:\n")[2].strip()) from error
            if isinstance(error, ValueError):
                raise SlurmCommandError(
                    f"word {self._id_position} of what sbatch printed is no job id; set slurm_settings.job_id_position "
                    f"(0 is the first word, -1 the last): {error}"
                ) from error
            raise
        self._submitted = time.monotonic()
        if self._guard is not None:
            self._guard.watch(self.job_id)

    async def close(self) -> None:
        """Cancels the job."""
        await super().close()
        self.mark_closed()

    def mark_closed(self) -> None:
        """Tells Dask that the job is gone: a cluster that closes asserts that each job was closed or has failed."""
        self.status = Status.closed

    async def ended(self, queue: dict[str, QueuedJob]) -> EndedJob | None:
        """Returns how the job ended; None for a job that has not, or that may only be missing in the queue."""
        self._was_listed |= self.job_id in queue
        age_s = time.monotonic() - self._submitted
        if self.job_id in queue or age_s <= GRACE_S:
            return None
        ended = await ended_job(self.job_id)
        is_in_doubt = ended is not None and ended.state == UNKNOWN and not self._was_listed and age_s < UNSEEN_S
        return None if is_in_doubt else ended


async def queued_jobs() -> dict[str, QueuedJob]:
    """Returns this user's jobs that have not ended, by id.

    Raises:
        SlurmCommandError: squeue failed.
    """
    lines = await _output("squeue", "--me", "--noheader", "--format=%i|%t|%N|%r")
    # Old releases print the names of clusters between jobs, in spite of --noheader.
    jobs = [line.strip().split("|", 3) for line in lines.splitlines() if line.count("|") >= 3]
    return {job_id: QueuedJob(state == "PD", reason, node) for job_id, state, node, reason in jobs if state != "CG"}


async def ended_job(job_id: str) -> EndedJob | None:
    """Returns how a job ended, which Slurm forgets after some minutes; None for a job that it says is still there."""
    try:
        shown = await _output("scontrol", "--oneliner", "show", "job", job_id)
    except SlurmCommandError:
        return EndedJob(UNKNOWN, Path(UNKNOWN))
    facts = dict(fact.split("=", 1) for fact in shown.split() if "=" in fact)
    if facts["JobState"] in UNFINISHED:
        return None
    node = facts.get("NodeList", NO_NODE)
    state = f"{facts['JobState']}, exit code {facts['ExitCode']}"
    return EndedJob(state, Path(facts["StdErr"]), "" if node == NO_NODE else node)


def _word_pattern(position: int) -> str:
    """Returns a pattern whose group `job_id` is a number: the word at this position, counted from -1 at the end."""
    if position == -1:  # the last word, or the id in "Submitted batch job 17 on cluster x"
        return r"(?P<job_id>(?<=Submitted batch job )\d+|(?<!\S)\d+(?=\s*$))"
    if position >= 0:
        return rf"^\s*(?:\S+\s+){{{position}}}(?P<job_id>\d+)(?!\S)"
    return rf"(?<!\S)(?P<job_id>\d+)(?:\s+\S+){{{-position - 1}}}\s*$"


async def _output(*command: str) -> str:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe)
    output, errors = await process.communicate()
    if process.returncode:
        raise SlurmCommandError(errors.decode().strip())
    return output.decode()
