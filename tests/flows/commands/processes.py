"""Commands as people type them, in separate processes or in this one."""

import os
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from unittest.mock import patch

import psutil
from click.testing import Result
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL
from typer.testing import CliRunner

from flows.commands.app import build_app

REPOSITORY = Path(__file__).parents[3]
# What no `--help` may import.
HEAVY = ("torch", "h5py", "matplotlib", "sklearn", "scipy", "krippendorff", "prefect", "pyarrow")


def api_variables() -> dict[str, str]:
    """Returns the environment of processes that use the tests' server."""
    return {
        "PREFECT_API_URL": str(PREFECT_API_URL.value()),
        "PREFECT_API_AUTH_STRING": str(PREFECT_API_AUTH_STRING.value()),
    }


def command(*arguments: str | Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Runs Python in the repository, with the test server as its API."""
    variables = {**os.environ, **api_variables(), **environment}
    line = [sys.executable, *map(str, arguments)]
    return subprocess.run(line, cwd=REPOSITORY, env=variables, capture_output=True, text=True, check=False)


def ml_filter(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    return command(Path(sys.executable).parent / "ml_filter", *arguments)


def ml_filter_here(*arguments: str | Path) -> Result:
    """Runs a command in this process, which has loaded torch and Prefect: they take a new one 3 to 12 s of CPU time."""
    with patch.dict(os.environ):  # a run sets PREFECT_HOME, which the processes of later tests would inherit
        return CliRunner().invoke(build_app(), [str(argument) for argument in arguments])


def prefect(*arguments: str) -> str:
    line = [sys.executable, "-m", "prefect", "--no-prompt", *arguments]
    done = subprocess.run(line, cwd=REPOSITORY, env=server_environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def server_environment() -> dict[str, str]:
    return {
        **os.environ,
        **api_variables(),
        "PREFECT_WORKER_QUERY_SECONDS": "1",  # seconds between two looks for runs; the default is 10
    }


def running_below(parent: int, name: str) -> list[psutil.Process]:
    """Returns the processes below one whose command line contains a name; some may end meanwhile."""
    found = []
    for child in psutil.Process(parent).children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # a zombie has no command line either
            if name in " ".join(child.cmdline()):
                found.append(child)
    return found


def all_gone(processes: Iterable[psutil.Process]) -> bool:
    """Says whether processes have ended; those that nobody has waited for have."""
    return not any(map(_is_alive, processes))


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE  # raises for another process of the same number
    except psutil.NoSuchProcess:
        return False
