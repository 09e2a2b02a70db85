"""Cancels a run's Slurm jobs when the run's process has ended, however it ended.

The guard is a separate process in a separate session, so that it outlives a flow that is killed. It reads job ids from
its standard input, one per line, until the other end is closed. It is started by its path: the working folder may have
a package `flows` of its own.
"""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# Limit for scancel, which asks a controller that may be busy.
TIMEOUT_S = 120


class JobGuard:
    """The flow's end of the pipe to the guard process."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def watch(self, job_id: str) -> None:
        """Adds a job that is cancelled when this process ends."""
        assert self._process.stdin is not None, "made with a pipe"
        self._process.stdin.write(f"{job_id}\n")
        self._process.stdin.flush()


@contextmanager
def job_guard() -> Iterator[JobGuard]:
    """Provides a guard that cancels its jobs when the block ends, or when this process is killed."""
    process = subprocess.Popen(
        [sys.executable, "-P", __file__], stdin=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        yield JobGuard(process)
    finally:
        process.communicate(timeout=TIMEOUT_S)


def main() -> None:
    jobs = [line.strip() for line in sys.stdin]
    if jobs:  # scancel does not fail for jobs that have ended
        subprocess.run(["scancel", "--quiet", *jobs], timeout=TIMEOUT_S, check=False)


if __name__ == "__main__":
    main()
