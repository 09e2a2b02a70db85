"""Commands as people type them, in separate processes."""

import os
import subprocess
import sys
from pathlib import Path

from prefect.settings import PREFECT_API_URL

REPOSITORY = Path(__file__).parents[3]


def command(*arguments: str | Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Runs Python in the repository, with the test server as its API."""
    variables = {**os.environ, "PREFECT_API_URL": str(PREFECT_API_URL.value()), **environment}
    line = [sys.executable, *map(str, arguments)]
    return subprocess.run(line, cwd=REPOSITORY, env=variables, capture_output=True, text=True, check=False)


def ml_filter(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    return command(Path(sys.executable).parent / "ml_filter", *arguments)
