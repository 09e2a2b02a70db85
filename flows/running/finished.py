"""What a run finds out before Prefect is imported: that its job cannot run, or that no file is left to do."""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from flows.running.report import RunReport
from flows.watching.logs import CORE
from mlfilter_core.config.execution import Job
from mlfilter_core.errors import MlfilterError
from mlfilter_core.job_kinds import workload_of
from mlfilter_core.work.division import divide
from mlfilter_core.work.finished_files import FinishedFiles
from mlfilter_core.work.look_up import LookUp


@dataclass(frozen=True)
class ToDo:
    """What a run has to do.

    Attributes:
        n_tasks: Number of tasks, as far as it was asked for; 0 where it is not known.
        imports: Modules that its workers need.
    """

    n_tasks: int = 0
    imports: Sequence[str] = ()


def finished_before(job: Job, n_asked: int = 1) -> RunReport | ToDo:
    """Returns the report of a job whose files are all finished or refused; otherwise what is to do.

    Args:
        job: The job.
        n_asked: Number of tasks after which no others are looked for: most workers of the run.

    Raises:
        MlfilterError: The job cannot run as it is configured.
    """
    with _warnings_held_back() as warnings:
        found = _finished_before(job, n_asked)
        if isinstance(found, ToDo):  # the run warns again
            warnings.clear()
        return found


def finished_later(job: Job) -> RunReport | ToDo:
    """Returns the same for a job whose files an earlier step or round makes, and which may not exist yet."""
    with _warnings_held_back() as warnings:
        try:
            found = _finished_before(job, 1)
        except MlfilterError:
            found = ToDo()
        if isinstance(found, ToDo) or found.failures:  # the run finds out, and warns, once its inputs are there
            warnings.clear()
            return ToDo()
        return found


def _finished_before(job: Job, n_asked: int) -> RunReport | ToDo:
    started = time.monotonic()
    try:
        workload = workload_of(job)
        with FinishedFiles(workload) as known:
            found = LookUp(workload, known)
            # From the end: a run works from the beginning, so files that are left to do are the last.
            for place in reversed(range(len(workload.files))):
                found.add(place)
                if len(found.to_do) == n_asked or found.is_in_vain:
                    break
        found.check()
        if found.to_do:
            workload.work.check(workload.files)
            n_tasks = n_asked
            if len(found.to_do) < n_asked:
                to_do = [workload.files[place] for place in found.to_do]
                n_tasks = min(len(divide(to_do, workload.work, n_asked)), n_asked)
            return ToDo(n_tasks, workload.work.IMPORTS)
        if not found.failures and not workload.work.is_concluded():
            return ToDo()
    except OSError:  # the run tries again, and reports it
        return ToDo()
    logs = job.logging_dir / f"{workload.flow}-finished-before"
    seconds, failures = time.monotonic() - started, dict(reversed(found.failures.items()))
    return RunReport(workload.flow, workload.output_dir, logs, seconds, found.reports, failures)


@contextmanager
def _warnings_held_back() -> Iterator[list[logging.LogRecord]]:
    """Gives the list of what the core logs in the block; what is left in it is logged at the end."""
    core, held_back = logging.getLogger(CORE), _HeldBack()
    propagates = core.propagate
    core.addHandler(held_back)
    core.propagate = False
    try:
        yield held_back.records
    finally:
        core.propagate = propagates
        core.removeHandler(held_back)
        for record in held_back.records:
            logging.getLogger(record.name).handle(record)


class _HeldBack(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)
