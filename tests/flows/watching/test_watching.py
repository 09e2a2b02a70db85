"""What a run shows while it lasts."""

import json
import threading
import time
import urllib.request
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterId, ArtifactFilterKey

from flows.embed import embed
from flows.watching import run_progress as run_progress_module
from flows.watching import watching as watching_module
from flows.workers import task_runner as task_runner_module
from tests.flows.conftest import WriteJob


@pytest.fixture
def one_long_file(corpus: Path) -> Path:
    for path in corpus.rglob("*.jsonl"):
        path.unlink()
    lines = (json.dumps({"id": str(i), "text": "word " * (1 + i % 9)}) + "\n" for i in range(20_000))
    (corpus / "z.jsonl").write_text("".join(lines))
    return corpus


def title_of(link: str) -> str:
    """Returns the title of the page that a link in Markdown leads to."""
    address = link.partition("](")[2].removesuffix(")")
    with urllib.request.urlopen(address, timeout=30) as page:
        return str(page.read().decode().partition("<title>")[2].partition("</title>")[0])


def test_progress_moves_while_a_single_file_is_under_way(
    one_long_file: Path, embed_job: WriteJob, client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching_module, "ARTIFACT_S", 0.1)
    monkeypatch.setattr(watching_module, "LOG_S", 1.0)
    monkeypatch.setattr(task_runner_module, "LONG_S", 0)
    monkeypatch.setattr(task_runner_module, "LOOK_S", 0.2)
    monkeypatch.setattr(run_progress_module, "CLEAR_S", 0.01)  # the run may end before its bottleneck is clear
    seen: dict[str | None, set[float]] = {}
    bars: set[UUID] = set()
    dashboards: set[str] = set()
    is_over, started = threading.Event(), datetime.now(UTC)

    def look() -> None:
        while not is_over.is_set():
            for artifact in client.read_artifacts(artifact_filter=None, limit=20, sort="CREATED_DESC"):
                if artifact.type == "progress" and (artifact.description or "").find("documents") > 0:
                    seen.setdefault(artifact.key, set()).add(float(str(artifact.data)))
                    if artifact.key is None:
                        bars.add(artifact.id)
                is_new = artifact.created is not None and artifact.created >= started
                if artifact.key == "embed-dashboard" and is_new and not dashboards:
                    dashboards.add(title_of(str(artifact.data)))
            time.sleep(0.1)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        report = embed(embed_job(commit_documents=1_000))  # a worker tells of each commit
    finally:
        is_over.set()
        looking.join()
    assert report.reports[0].documents == 20_000
    assert dashboards == {"Dask Diagnostic UI"}
    assert sum(0 < percent < 100 for percent in seen["embed-progress"]) >= 3
    assert sum(0 < percent < 100 for percent in seen[None]) >= 1  # artifact of the task run
    ended: list[Any] = client.read_artifacts(artifact_filter=ArtifactFilter(id=ArtifactFilterId(any_=list(bars))))
    assert [(float(bar.data), bar.description) for bar in ended] == [(100, "z.jsonl: finished")]
    by_key = ArtifactFilter(key=ArtifactFilterKey(any_=["embed-progress"]))
    last: Any = client.read_artifacts(artifact_filter=by_key, limit=1, sort="CREATED_DESC")[0]
    assert float(last.data) == 100
    assert last.description.startswith("1 of 1 files, 20,000 documents, ")
    log = (report.logs / "flow.log").read_text()
    assert " documents/s, " in log and " left, " in log
