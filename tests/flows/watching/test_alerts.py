"""The alerts of deployments/alerts.yaml, loaded as the guide says: a real server, real runs, a real webhook."""

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from flows.prefect_api import left_running
from mlfilter_core.job_kinds import kinds
from tests.conftest import REPOSITORY, within
from tests.docs.pages import DOCS, blocks
from tests.flows.commands.processes import running_below
from tests.flows.conftest import WriteJob
from tests.flows.dask_workers import PRELOADED
from tests.flows.login_node import SERVER, Server, started

COMMANDS = [content for _, content in blocks(DOCS / "guides" / "login-node.md", "bash")]
URL_OF_GUIDE = "https://hooks.example.org/services/mlfilter"
# Far longer than any pause of a healthy run on two busy cores.
STALL_S = 100
# A server makes its database, or a process loads torch, on two busy cores.
START_S = 150
# Workers are forked from a process that has loaded their modules: to load them takes as long as a stall.
RUNS = """
import sys
from pathlib import Path

import dask
from distributed.utils import get_mp_context

from flows.running.start import run_job_file
from flows.watching import watching
from mlfilter_core.errors import MlfilterError

modules, job, *corpora = sys.argv[1:]
watching.EVENT_S = 1.0
dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"})
get_mp_context().set_forkserver_preload(modules.split(","))
loading = get_mp_context().Process(target=int)
loading.start()
loading.join()
input()
for corpus in corpora:
    try:
        run_job_file("embed", Path(job), {"params.input_dir": corpus, "params.output_dir": f"{corpus}.out"})
    except MlfilterError:
        pass
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A server that starts."""
    server = Server(tmp_path / "home")
    with started(SERVER, server.environment, tmp_path / "server.log"):
        yield server


@pytest.fixture
def webhook() -> Iterator[tuple[str, list[str]]]:
    """The address of a webhook on this machine, and the texts that it gets."""
    texts: list[str] = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            texts.append(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["text"])
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Hook) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{listening.server_address[1]}/hook", texts
        listening.shutdown()
        thread.join()


def load_alerts(server: Server, folder: Path, url: str) -> None:
    """Runs the commands of the guide, on the file with a short time of a stall."""
    alerts = (REPOSITORY / "deployments" / "alerts.yaml").read_text()
    assert alerts.count("within: 600 ") == 1
    (folder / "deployments").mkdir()
    (folder / "deployments" / "alerts.yaml").write_text(alerts.replace("within: 600 ", f"within: {STALL_S} "))
    (load,) = (commands.replace(URL_OF_GUIDE, url) for commands in COMMANDS if URL_OF_GUIDE in commands)
    done = subprocess.run(
        ["bash", "-euc", load], cwd=folder, env=server.environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def corpus_of(folder: Path, *files: list[str]) -> Path:
    folder.mkdir()
    for i, lines in enumerate(files):
        (folder / f"{i}.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return folder


def test_the_guide_deletes_all_alerts() -> None:
    automations = yaml.safe_load((REPOSITORY / "deployments" / "alerts.yaml").read_text())["automations"]
    (names,) = (found[1] for commands in COMMANDS if (found := re.search(r"for name in (.*); do .* delete", commands)))
    assert [automation["name"] for automation in automations] == [f"mlfilter-{name}" for name in names.split()]


def test_the_alert_about_failures_names_all_flows() -> None:
    automations = yaml.safe_load((REPOSITORY / "deployments" / "alerts.yaml").read_text())["automations"]
    named = automations[0]["trigger"]["match_related"]["prefect.resource.name"]
    assert named == [*(kind.flow for kind in kinds()), "pipeline"]


def test_operators_hear_of_runs_that_fail_stall_or_reject_much_and_of_no_others(
    server: Server, webhook: tuple[str, list[str]], embed_job: WriteJob, tmp_path: Path
) -> None:
    (url, texts), begun = webhook, datetime.now(UTC)
    lines = [json.dumps({"id": str(i), "text": "word " * (1 + i % 9)}) for i in range(20)]
    healthy = corpus_of(tmp_path / "healthy", lines)
    bad = corpus_of(tmp_path / "bad", [*lines[3:], *["no JSON"] * 3], ["no JSON"])  # the second file fails
    stalling = corpus_of(tmp_path / "stalling", lines * 10_000)

    def name_of_run(corpus: Path) -> str:
        return "".join(logs.name.removeprefix("embed-") for logs in corpus.with_suffix(".out").glob("logs/embed-*"))

    def alerts_of(corpus: Path) -> list[str]:
        return [text for text in texts if text.startswith(f"embed {name_of_run(corpus)}: ")]

    def goes_on(since: datetime) -> bool:
        """Returns whether the server has heard that documents of the stalling run were embedded since then."""
        events = server.progress_of(name_of_run(stalling), since)
        return any(" documents, " in event["payload"]["progress"] for event in events)

    line = [sys.executable, "-c", RUNS, ",".join(PRELOADED), *map(str, (embed_job(), healthy, bad, stalling))]
    with started(line, server.environment, tmp_path / "runs.log") as runs:
        within(START_S, server.answers)
        load_alerts(server, tmp_path, url)
        assert runs.stdin is not None
        runs.stdin.write(b"\n")
        runs.stdin.flush()
        within(START_S, lambda: name_of_run(stalling) and goes_on(begun))
        workers = running_below(runs.pid, "forkserver")
        for worker in workers:
            worker.suspend()
        within(START_S, lambda: alerts_of(stalling))

        resumed = datetime.now(UTC)
        for worker in workers:
            worker.resume()
        within(START_S, lambda: goes_on(resumed))
        # As on a machine that is switched off: the guard of the run cannot report a crash.
        for process in (*running_below(runs.pid, left_running.__file__), runs, *workers):
            with suppress(psutil.NoSuchProcess):  # workers end when their run is gone
                process.kill()
        within(START_S, lambda: len(alerts_of(stalling)) == 2)

    for text in alerts_of(stalling):
        assert re.search(r": stalled: Nothing was processed since 20.{14} UTC: 0 of 1 files, [\d,]+ documents, ", text)
    assert len(alerts_of(bad)) == 2, "\n".join(texts)
    failed, rejects = sorted(alerts_of(bad))
    assert ": Failed: 1 of 2 files failed; " in failed
    assert "1 of 1 lines are rejected" in failed
    assert ": many lines are rejected: 3 of 20 lines rejected; 1 of 2 files, 1 failed, " in rejects
    assert name_of_run(healthy)
    assert alerts_of(healthy) == []
    assert len(texts) == 4, "\n".join(texts)
    for text in texts:
        assert re.search(rf"\n{server.address}/runs/flow-run/[0-9a-f-]{{36}}$", text)
