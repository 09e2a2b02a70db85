import signal
import subprocess
import sys

import pytest

from tests.flows.commands.processes import REPOSITORY

# A server whose application ends with a failure, before it has started or after it was told to end.
FAILING = """
import signal, socket, sys
from prefect.server.api import server
from flows.prefect_api import serve

moment = sys.argv[1]

async def app(scope, receive, send):
    if moment == "shutdown":
        signal.raise_signal(signal.SIGTERM)
        await send({"type": "lifespan.startup.complete"})
        while (await receive())["type"] != "lifespan.shutdown":
            pass
    await send({"type": f"lifespan.{moment}.failed", "message": "no database"})

server.create_app = lambda **options: app
sys.argv[1] = str(socket.create_server(("127.0.0.1", 0)).detach())
serve.main()
"""


@pytest.mark.parametrize(("moment", "is_said"), [("startup", True), ("shutdown", False)])
def test_only_a_failure_before_the_server_was_told_to_end_is_said(moment: str, is_said: bool) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", FAILING, moment],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        said = process.stdout.read()
    assert ("Application startup failed" in said) == is_said
    assert (said == "") != is_said
    assert process.returncode in ((3,) if is_said else (0, -signal.SIGTERM))
