"""A Prefect server as on a login node, and processes beside it."""

import json
import os
import socket
import subprocess
import sys
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from tests.conftest import REPOSITORY

PASSWORD = "operator:of a test"
SERVER = [sys.executable, "-m", "prefect", "--no-prompt", "server", "start"]


class Server:
    """A Prefect server as on a login node: with a password, and at first with an empty home."""

    def __init__(self, home: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{port}"
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")},
            **{"PREFECT_HOME": str(home), "PREFECT_SERVER_API_PORT": str(port)},
            **{"PREFECT_API_URL": f"{self.address}/api", "PREFECT_API_AUTH_STRING": PASSWORD},
            **{"PREFECT_SERVER_API_AUTH_STRING": PASSWORD, "PREFECT_SERVER_ANALYTICS_ENABLED": "false"},
            **{"PYTHONPATH": str(REPOSITORY), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        }

    def answers(self) -> bool:
        """Returns whether it has started."""
        try:
            self.ask("health")
        except OSError:
            return False
        return True

    def progress_of(self, run: str, since: datetime) -> list[Any]:
        """Returns events of a run's progress since then."""
        resource = {"labels": {"prefect.resource.name": [run]}}
        wanted = {"event": {"name": ["mlfilter.progress"]}, "resource": resource}
        found = self.ask("events/filter", {"filter": {**wanted, "occurred": {"since": since.isoformat()}}})
        return list(found["events"])

    def ask(self, path: str, content: Any = None) -> Any:
        headers = {"Authorization": f"Basic {b64encode(PASSWORD.encode()).decode()}"}
        body = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(
            f"{self.address}/api/{path}", body, {**headers, "Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)


@contextmanager
def started(line: list[str], environment: dict[str, str], log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """Runs a process in the block; then kills it and all below it."""
    with log.open("wb") as output:
        process = subprocess.Popen(line, env=environment, stdin=subprocess.PIPE, stdout=output, stderr=output)
    with process:
        try:
            yield process
        finally:
            if process.poll() is None:
                for member in (*psutil.Process(process.pid).children(recursive=True), process):
                    member.kill()
