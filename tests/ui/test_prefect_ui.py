"""The Prefect UI as a person uses it: a real server, a real worker, a real browser."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.settings import PREFECT_API_URL, temporary_settings
from selenium.common.exceptions import StaleElementReferenceException, WebDriverException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tests.browser import chromium, screenshot
from tests.conftest import PATIENCE

REPOSITORY = Path(__file__).parents[2]
# The flow's process starts, its worker loads torch, on two busy cores.
RUN_S = 150
PAGE_S = 40
# Sections that the form shows on request, by the name of their class.
SECTIONS = ("LocalSettings", "SlurmSettings", "Scoring")
FORMS = {"embed": "EmbeddingJob", "train_head": "TrainingJob", "annotate": "AnnotationJob", "filter": "FilterJob"}

Browser = Any


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Prefect server with its UI, the deployments of prefect.yaml, and a worker; returns its address."""
    home = tmp_path_factory.mktemp("prefect")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")},
        **{"PREFECT_HOME": str(home), "PREFECT_API_URL": f"{address}/api", "PREFECT_SERVER_API_PORT": str(port)},
        **{"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1", "PREFECT_WORKER_QUERY_SECONDS": "1"},
        "TMPDIR": str(home),  # folder of the worker's runner
    }

    def prefect(*arguments: str) -> list[str]:
        return [sys.executable, "-m", "prefect", "--no-prompt", *arguments]

    def started(*arguments: str) -> "subprocess.Popen[bytes]":
        quiet = subprocess.DEVNULL
        return subprocess.Popen(prefect(*arguments), cwd=REPOSITORY, env=environment, stdout=quiet, stderr=quiet)

    serving = started("server", "start")
    working: subprocess.Popen[bytes] | None = None
    try:
        for arguments in (
            ("server", "status", "--wait", "--timeout", "120"),
            ("work-pool", "create", "mlfilter-local", "--type", "process"),
            ("work-pool", "create", "mlfilter-prod", "--type", "process"),
            ("deploy", "--all"),
        ):
            done = subprocess.run(
                prefect(*arguments), cwd=REPOSITORY, env=environment, capture_output=True, check=False
            )
            assert done.returncode == 0, done.stdout + done.stderr
        working = started("worker", "start", "--pool", "mlfilter-local")
        with temporary_settings({PREFECT_API_URL: f"{address}/api"}):
            yield address
    finally:
        for process in (working, serving):
            if process is not None:
                family = [*psutil.Process(process.pid).children(recursive=True), process]
                for member in family:
                    member.kill()
                process.wait()


@pytest.fixture
def client(server: str) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as client:
        yield client


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium(1400, 1100) as browser:
        yield browser


@pytest.fixture
def job(tmp_path: Path, tiny_model: Path) -> Path:
    """Two files, one of them bad; each has a separate task."""
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "good.jsonl").write_text("".join(json.dumps({"id": f"g{i}", "text": "word"}) + "\n" for i in range(50)))
    (corpus / "bad.jsonl").write_text('{"txt": "a"}\n')
    params = {"input_dir": str(corpus), "output_dir": str(tmp_path / "out"), "embedding_model": str(tiny_model)}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump({"params": params, "files_per_task": 1}))
    return tmp_path / "job.yaml"


def until(condition: Callable[[], Any], seconds: float = PAGE_S) -> Any:
    """Waits for an element on a page that is still being redrawn; returns it."""
    end = time.monotonic() + PATIENCE * seconds
    while True:
        try:
            if found := condition():
                return found
        except (StaleElementReferenceException, WebDriverException, IndexError) as error:
            assert time.monotonic() < end, error
        assert time.monotonic() < end, f"not within {PATIENCE} times {seconds} s"
        time.sleep(0.3)


def submitted(browser: Browser, client: SyncPrefectClient) -> Any:
    """Returns the run that a form starts; clicks again if the form was being redrawn."""
    runs = client.read_flow_runs(limit=1, sort="EXPECTED_START_TIME_DESC")
    if not runs and "Submit" in text(browser):
        click(browser, "Submit")
        time.sleep(2)
    return runs


def text(browser: Browser) -> str:
    return str(browser.find_element(By.TAG_NAME, "body").text)


def click(browser: Browser, label: str) -> None:
    """Clicks the innermost element that shows a label."""
    until(lambda: browser.find_elements(By.XPATH, f"//*[normalize-space(.)='{label}']")[-1].click() or True)


def open_form(browser: Browser, client: SyncPrefectClient, server: str, name: str) -> None:
    browser.get(f"{server}/deployments/deployment/{client.read_deployment_by_name(name).id}/run")
    until(lambda: browser.find_elements(By.TAG_NAME, "textarea"))


def words(description: str) -> str:
    """Returns a description as the UI shows it: as Markdown, without text that looks like HTML."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>|[*_`\\]", "", description)).strip()


@pytest.mark.parametrize("flow", FORMS)
def test_the_form_shows_every_parameter_with_its_description(
    browser: Browser, client: SyncPrefectClient, server: str, flow: str
) -> None:
    open_form(browser, client, server, f"{flow}/local")
    click(browser, FORMS[flow])
    until(lambda: "Running On Slurm" in text(browser))
    schema: Any = client.read_deployment_by_name(f"{flow}/local").parameter_openapi_schema
    for section in SECTIONS:
        if section in schema["definitions"]:
            click(browser, section)
            about = next(iter(schema["definitions"][section]["properties"].values()))
            until(lambda about=about: words(about["description"]) in words(text(browser)))
    shown = words(text(browser))
    fields = {"config": schema["properties"]["config"], "overrides": schema["properties"]["overrides"]}
    for name, definition in schema["definitions"].items():
        # The form shows the fields of a head, an ensemble, a limit or a division once one is added.
        if name not in ("HeadRecipe", "Ensemble", "Bound", "ChunkSettings"):
            fields |= definition["properties"]
    missing = [name for name, about in fields.items() if words(about["description"]) not in shown]
    assert missing == []
    assert [name for name, about in fields.items() if words(about.get("title", name)) not in shown] == []
    assert shown.index("Params") < shown.index("Running On Slurm")  # required fields come first
    browser.set_window_size(1400, 3000)
    screenshot(browser, f"prefect-form-{flow}")
    browser.set_window_size(1400, 1100)


def test_a_run_is_started_watched_and_retried_in_the_ui(
    browser: Browser, client: SyncPrefectClient, server: str, job: Path, tmp_path: Path
) -> None:
    open_form(browser, client, server, "embed/local")
    config = browser.find_elements(By.TAG_NAME, "textarea")[0]
    config.send_keys(Keys.CONTROL, "a")
    config.send_keys(str(job))
    config.send_keys(Keys.TAB)
    (run,) = until(lambda: submitted(browser, client))
    browser.get(f"{server}/runs/flow-run/{run.id}")
    until(lambda: "embed bad.jsonl" in text(browser), RUN_S)  # the log, while it runs
    until(lambda: client.read_flow_run(run.id).state_name == "Failed", RUN_S)

    browser.refresh()
    until(lambda: "bad.jsonl failed: " in text(browser))
    page = text(browser)
    assert "Failed" in page and "2 Task runs" in page
    assert '1 of 1 lines are rejected (1 missing_key; first: line 1: "text" is missing' in page
    assert re.search(r"good.jsonl: 50 documents, 0 rejected, \d+ tokens in [\d.]+ s", page)
    screenshot(browser, "prefect-run-failed")
    click(browser, "Task Runs")
    until(lambda: {"embed bad.jsonl", "embed good.jsonl"} <= set(text(browser).splitlines()))
    screenshot(browser, "prefect-task-runs")
    click(browser, "Artifacts")
    until(lambda: {"embed-summary", "embed-progress", "embed-files"} <= set(text(browser).splitlines()))
    assert re.search(r"1 of 2 files, 1 failed, 50 documents, [\d.,]+ documents/s", text(browser))
    screenshot(browser, "prefect-artifacts")
    browser.get(f"{server}/artifacts/key/embed-summary")
    until(lambda: "embed-summary" in text(browser))
    newest = client.read_artifacts(limit=10, sort="CREATED_DESC")
    summary = next(artifact for artifact in newest if artifact.key == "embed-summary")
    browser.get(f"{server}/artifacts/artifact/{summary.id}")
    pictures = until(lambda: browser.find_elements(By.CSS_SELECTOR, "img[src^='data:image/svg']"))
    assert len(pictures) == 2
    until(lambda: all(picture.size["height"] > 50 for picture in pictures))  # it shows them
    assert str(tmp_path / "out" / "report" / "index.html") in text(browser)
    browser.set_window_size(1400, 2600)
    screenshot(browser, "prefect-summary")
    browser.set_window_size(1400, 1100)

    finished = next((tmp_path / "out").rglob("good.h5")).stat()
    (tmp_path / "corpus" / "bad.jsonl").write_text('{"text": "mended"}\n')
    browser.get(f"{server}/runs/flow-run/{run.id}")
    click(browser, "Retry")
    until(lambda: len(browser.find_elements(By.XPATH, "//button[normalize-space(.)='Retry']")) > 1)
    browser.find_elements(By.XPATH, "//button[normalize-space(.)='Retry']")[-1].click()  # the button of the dialog
    until(lambda: client.read_flow_run(run.id).state_name == "Completed", RUN_S)
    assert client.read_flow_run(run.id).run_count == 2
    assert next((tmp_path / "out").rglob("bad.h5"))
    assert next((tmp_path / "out").rglob("good.h5")).stat().st_ino == finished.st_ino
    until(lambda: "Completed" in text(browser))
    screenshot(browser, "prefect-run-retried")
