"""Processes on odd machines: with mounts, limits and users of their own."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pytest


def python_with_mounts(mounts: str, code: str, *arguments: str | Path, **environment: str) -> str:
    """Returns what Python code prints where a shell's commands have mounted something for it alone.

    Args:
        mounts: The commands.
        code: The code.
        arguments: Its arguments.
        environment: Its environment beside that of the tests.
    """
    own = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]
    if subprocess.run([*own, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, check=False).returncode:
        pytest.skip("this user cannot mount anything")
    line = [*own, "sh", "-e", "-c", f'{mounts}\nexec "$0" "$@"', sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(line, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def without_locks(below: Path, folder: Path) -> dict[str, str]:
    """Returns the environment of processes for which the files below a folder have no locks.

    Args:
        below: The folder.
        folder: Folder for the library that makes locks fail.
    """
    library = folder / "no_locks.so"
    source = Path(__file__).with_name("no_locks.c")
    if shutil.which("gcc") is None:
        pytest.skip("there is no C compiler")
    subprocess.run(["gcc", "-shared", "-fPIC", "-Wall", "-o", library, source, "-ldl"], check=True)
    return {"LD_PRELOAD": str(library), "NO_LOCKS_BELOW": str(below)}


class ControlGroup:
    """A control group with one controller, of version 1 or 2."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def limit_cores(self, n_cores: float) -> None:
        """Limits its processes to the time of a number of cores."""
        if (self._folder / "cpu.max").exists():
            (self._folder / "cpu.max").write_text(f"{n_cores * 100_000:.0f} 100000")
        else:
            (self._folder / "cpu.cfs_quota_us").write_text(f"{n_cores * 100_000:.0f}")

    def limit_memory(self, n_bytes: int) -> None:
        """Limits the memory of its processes together."""
        name = "memory.max" if (self._folder / "memory.max").exists() else "memory.limit_in_bytes"
        (self._folder / name).write_text(str(n_bytes))

    def python(self, code: str) -> str:
        """Returns what Python code prints in the group."""
        line = ["sh", "-c", f'echo $$ > {self._folder}/cgroup.procs; exec "$0" -c "$1"', sys.executable, code]
        return subprocess.run(line, capture_output=True, text=True, check=True).stdout


@contextmanager
def control_group(controller: str) -> Iterator[ControlGroup]:
    """Makes a control group; skips the test where this user or system does not let it."""
    top = Path("/sys/fs/cgroup")
    below = top / "cgroup.subtree_control"
    has_version_2 = below.exists() and controller in below.read_text().split()
    folder = (top if has_version_2 else top / controller) / f"mlfilter-{uuid4().hex[:8]}"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"the group {folder} cannot be made: {error.strerror}")
    try:
        yield ControlGroup(folder)
    finally:
        folder.rmdir()
