"""Cancels a run's Slurm jobs once the run's process has ended, however it ended.

A process of its own, in a session of its own: it outlives a flow that is killed. It reads job ids from its standard
input, one on a line, for as long as the other end is open.
"""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# Of scancel, which asks a controller that may be busy.
TIMEOUT_S = 120


class JobGuard:
    """The flow's side."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def watch(self, job_id: str) -> None:
        """Takes a job that is to end when this process does."""
        assert self._process.stdin is not None, "made with a pipe"
        self._process.stdin.write(f"{job_id}\n")
        self._process.stdin.flush()


@contextmanager
def job_guard() -> Iterator[JobGuard]:
    """Cancels the jobs that it is told of when the block ends, or the process is killed."""
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.workers.job_guard"], stdin=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        yield JobGuard(process)
    finally:
        process.communicate(timeout=TIMEOUT_S)


def main() -> None:
    jobs = [line.strip() for line in sys.stdin]
    if jobs:  # those that have ended are no error to scancel
        subprocess.run(["scancel", "--quiet", *jobs], timeout=TIMEOUT_S, check=False)


if __name__ == "__main__":
    main()
