import re
import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

from tests.conftest import REPOSITORY, within
from tests.flows.login_node import SERVER, Server, started

START_S = 150  # the server makes its database, on busy cores


def test_the_server_of_the_guide_deletes_old_runs(tmp_path: Path) -> None:
    guide = (REPOSITORY / "docs/guides/login-node.md").read_text()
    settings = dict(re.findall(r"^export (PREFECT_SERVER_SERVICES_DB_VACUUM_\w+)=(\S+)$", guide, re.MULTILINE))
    assert len(settings) == 2
    server = Server(tmp_path / "home")
    environment = {**server.environment, **settings, "PREFECT_SERVER_SERVICES_DB_VACUUM_LOOP_SECONDS": "3"}
    with started(SERVER, environment, tmp_path / "server.log"):
        within(START_S, server.answers)
        flow_id = server.ask("flows/", {"name": "embed"})["id"]
        for name in ("old", "recent"):
            run = {"flow_id": flow_id, "name": name, "state": {"type": "COMPLETED"}}
            within(START_S, lambda run=run: is_made(server, run))
        for name, days in (("old", 31), ("recent", 29)):
            ended = (datetime.now(UTC) - timedelta(days=days)).strftime("%Y-%m-%d %H:%M:%S.%f")
            with closing(sqlite3.connect(tmp_path / "home/prefect.db", timeout=60)) as database, database:
                database.execute("UPDATE flow_run SET end_time = ? WHERE name = ?", (ended, name))
        within(START_S, lambda: [run["name"] for run in server.ask("flow_runs/filter", {})] == ["recent"])


def is_made(server: Server, run: dict[str, Any]) -> bool:
    """Makes a flow run, unless the server's services keep its database locked."""
    try:
        server.ask("flow_runs/", run)
    except HTTPError:
        return False
    return True
