"""Killed flows, workers that lose their network, runs that share an output folder."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
import h5py
import numpy as np
import psutil
import pytest
import yaml
from distributed import LocalCluster

from flows.embed import embed
from flows.running import run_files as run_files_module
from flows.workers.local import SCHEDULER_SETTINGS
from flows.workers.on_worker import PRELOAD
from flows.workers.task_runner import WorkerTaskRunner
from mlfilter_core.config.embedding import EmbeddingJob
from mlfilter_core.config.job_files import load_job
from mlfilter_core.corpus.source_files import SOURCE_SUFFIXES
from mlfilter_core.embedding.work import embed_work
from mlfilter_core.embedding_store.reader import EmbeddingFile
from mlfilter_core.files.task_files import find_files
from tests.faults.campaign import IS_LONG
from tests.faults.conftest import END_S, MINILM, TEST_S, Run, WriteJob, leftovers, statuses, within, write_corpus
from tests.flows.commands.processes import all_gone
from tests.flows.conftest import write_embeddings

# A worker whose flow is gone ends at once, the guard that reports for the flow some seconds later.
GONE_S = 60
pytestmark = pytest.mark.timeout(TEST_S)


@pytest.fixture
def write_job(tmp_path: Path) -> Callable[..., Path]:
    """Writes a corpus and a job for MiniLM, one task for each file."""

    def write(n_documents: dict[str, int], **params: Any) -> Path:
        params = {
            "input_dir": str(write_corpus(tmp_path / "corpus", n_documents)),
            "output_dir": str(tmp_path / "out"),
            "embedding_model": MINILM,
            "text_field": "text",
            "max_batch_tokens": 1024,
            "commit_documents": 10,
            **params,
        }
        content = {"params": params, "local_settings": {"workers": 1}, "files_per_task": 1}
        (tmp_path / "job.yaml").write_text(yaml.safe_dump(content))
        return tmp_path / "job.yaml"

    return write


def check_undisturbed(job: Path, out: Path) -> None:
    """Every output of a job exists, and equals the output of this process from the same source."""
    params = load_job(job, EmbeddingJob, {"params.output_dir": str(out.parent / "undisturbed")}).params
    work = embed_work(params)
    for source in find_files(params.input_dir, params.glob_pattern, SOURCE_SUFFIXES):
        expected = Path(work.run(source).output)
        with h5py.File(expected) as here, h5py.File(out / "embeddings" / expected.name) as there:
            assert list(here["train"]) == list(there["train"])
            for name in ("document_id", "source_line", "source_offset", "n_tokens"):
                assert list(here[f"train/{name}"]) == list(there[f"train/{name}"])
            np.testing.assert_allclose(here["train/embeddings"][()], there["train/embeddings"][()], atol=1e-5)
    assert leftovers(out) == set()


def committed_bytes(out: Path, name: str) -> int:
    path = out / "embeddings" / f".{name}.h5.committed"
    return path.stat().st_size if path.exists() else 0


def test_a_flow_that_is_killed_leaves_no_process_and_no_half_file_and_a_rerun_goes_on_within_the_file(
    write_job: Callable[..., Path], start: Callable[..., Run], tmp_path: Path
) -> None:
    n_documents = {"a": 200, "b": 200}  # the worker may take either first
    job, out = write_job(n_documents), tmp_path / "out"
    run = start("embed", job)

    def whole() -> set[str]:
        return {path.stem for path in out.rglob("[!.]*.h5")}

    def is_in_the_middle() -> bool:
        for path in out.rglob("[!.]*.h5"):  # at every instant
            EmbeddingFile(path, "train").__exit__()
        begun = n_documents.keys() - whole()
        return len(begun) == 1 and committed_bytes(out, *begun) > 40 * 384 * 4

    within(END_S, is_in_the_middle, run)
    processes = psutil.Process(run.process.pid).children(recursive=True)
    assert processes
    run.process.kill()
    within(GONE_S, lambda: all_gone(processes))
    (finished,) = whole()
    report = embed(job)
    statuses_of = {row.source: row.status for row in report.reports}
    assert statuses_of == {f"{name}.jsonl": "skipped" if name == finished else "embedded" for name in n_documents}
    assert report.totals()["resumed"] >= 40
    check_undisturbed(job, out)


@pytest.mark.parametrize("params", [{}, {"split": 3}])
def test_two_embedding_runs_on_one_folder_share_the_files(
    params: dict[str, Any], write_job: Callable[..., Path], start: Callable[..., Run], tmp_path: Path
) -> None:
    files = {f"file{i}": 25 for i in range(5)}
    job = write_job(files, **params)
    runs = [start("embed", job), start("embed", job)]
    assert [run.ended() for run in runs] == [0, 0], "\n".join(run.said for run in runs)
    names = [f"{name}.jsonl" for name in files]
    assert statuses(tmp_path / "out" / "logs") == [(name, s) for name in names for s in ("embedded", "skipped")]
    check_undisturbed(job, tmp_path / "out")


def test_two_annotation_runs_on_one_folder_share_the_files(
    annotate_job: WriteJob, start: Callable[..., Run], tmp_path: Path
) -> None:
    names = [f"file{i}.h5" for i in range(8)]
    for name in names:
        write_embeddings(tmp_path / "out" / "embeddings" / name, 20_000)
    job = annotate_job()
    runs = [start("annotate", job), start("annotate", job)]
    assert [run.ended() for run in runs] == [0, 0], "\n".join(run.said for run in runs)
    assert statuses(tmp_path / "out" / "logs") == [(name, s) for name in names for s in ("annotated", "skipped")]
    scores = set()
    for name in names:
        path = (tmp_path / "out" / "annotated_data" / name).with_suffix(".jsonl")
        records = [json.loads(line) for line in path.read_text().splitlines()]
        assert [record.pop("document_id") for record in records] == [f"{path.stem}-{i}" for i in range(20_000)]
        scores.add(json.dumps(records))
    assert len(scores) == 1  # all from the same embeddings
    assert leftovers(tmp_path / "out") == set()


@dataclass(frozen=True)
class Namespace:
    """A network namespace, connected to this machine's network by one virtual cable."""

    name: str
    far_end: str
    address_here: str

    def cut(self) -> None:
        subprocess.run(["ip", "-n", self.name, "link", "set", self.far_end, "down"], check=True)

    def mend(self) -> None:
        subprocess.run(["ip", "-n", self.name, "link", "set", self.far_end, "up"], check=True)


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    name = f"mlf{os.getpid()}"
    near, far, net = f"{name}a", f"{name}b", f"10.213.{os.getpid() % 250}"
    commands = [
        f"ip netns add {name}",
        f"ip link add {near} type veth peer name {far} netns {name}",
        f"ip address add {net}.1/24 dev {near}",
        f"ip link set {near} up",
        f"ip -n {name} address add {net}.2/24 dev {far}",
        f"ip -n {name} link set {far} up",
        f"ip -n {name} link set lo up",
    ]
    try:
        for command in commands:
            try:
                subprocess.run(command.split(), check=True, capture_output=True, text=True)
            except (OSError, subprocess.CalledProcessError) as error:
                pytest.skip(f"no network namespace here: {command}: {getattr(error, 'stderr', error)}")
        yield Namespace(name, far, f"{net}.1")
    finally:
        subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
        subprocess.run(["ip", "link", "del", near], check=False, capture_output=True)


class TestWorkers:
    """Workers that a test starts on its own scheduler: a `Workers` with one task in flight."""

    __test__ = False

    def __init__(self, namespace: Namespace, logs: Path) -> None:
        cluster = {"n_workers": 0, "host": namespace.address_here, "dashboard_address": "127.0.0.1:0"}
        self.runner = WorkerTaskRunner(logs, cluster_class=LocalCluster, cluster_kwargs=cluster)
        self._namespace = namespace
        self._logs = logs
        self._processes: list[subprocess.Popen[bytes]] = []

    def tend(self, n_tasks: int) -> int:
        return 1

    def node_of(self, worker: str) -> str:
        return worker

    def blame(self, worker: str, kind: str, task: str) -> None: ...

    def remarks(self) -> list[str]:
        return []

    def start_worker(self, *, inside: bool) -> None:
        """Starts a worker as a Slurm job does, in the namespace or outside."""
        line = [sys.executable, "-m", "distributed.cli.dask_worker", self.runner.client.scheduler.address]
        line += ["--nthreads", "1", "--preload", PRELOAD, "--no-dashboard", "--dashboard-address", "127.0.0.1:0"]
        line += ["--memory-limit", "0", "--death-timeout", "120", "--local-directory", str(self._logs / "dask")]
        prefix = ["ip", "netns", "exec", self._namespace.name] if inside else []
        timeout = {"DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP": dask.config.get("distributed.comm.timeouts.tcp")}
        with open(self._logs / f"dask-{'inside' if inside else 'outside'}.log", "wb") as log:
            environment = {**os.environ, **timeout, "OMP_NUM_THREADS": "1"}
            self._processes.append(subprocess.Popen([*prefix, *line], env=environment, stdout=log, stderr=log))

    def stop(self) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.wait(60)


@pytest.mark.parametrize("is_brief", [True, False], ids=["for seconds", "for longer than Dask waits"])
def test_a_worker_that_loses_its_network_costs_no_file_and_no_file_is_written_twice(
    is_brief: bool,
    namespace: Namespace,
    write_job: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Scaled down: Dask's timeout from 30 s to 12 s, its minimum; the network loss from 60 s to the time that it takes.

    Either the lost worker finishes the file, while the other worker waits for it or finds it; or Dask ends the lost
    worker, and the other resumes the file. In the long variant, the file takes longer than the network is down.
    """
    n_documents = 2000 if IS_LONG else 200
    job, out = write_job({"a": n_documents}), tmp_path / "out"
    started: list[TestWorkers] = []

    @contextmanager
    def test_workers(*arguments: Any) -> Iterator[TestWorkers]:
        logs: Path = arguments[-1]
        workers = TestWorkers(namespace, logs)
        with workers.runner:
            workers.start_worker(inside=True)
            started.append(workers)
            try:
                yield workers
            finally:
                workers.stop()

    def logs_of_workers() -> list[str]:
        return [path.read_text() for path in (out / "logs").glob("*/worker-*.log")]

    def disturb() -> None:
        within(END_S, lambda: committed_bytes(out, "a") > 30 * 384 * 4)
        namespace.cut()
        if is_brief:
            time.sleep(3)
        else:
            started[0].start_worker(inside=False)
            if IS_LONG:
                time.sleep(60)
            within(END_S, lambda: len(logs_of_workers()) == 2)  # another has got the task
        namespace.mend()

    monkeypatch.setattr(run_files_module, "local_workers", test_workers)
    timeouts = {} if is_brief or IS_LONG else {"distributed.comm.timeouts.tcp": "12s"}
    with dask.config.set({**SCHEDULER_SETTINGS, **timeouts}), ThreadPoolExecutor(1) as thread:
        disturbance = thread.submit(disturb)
        report = embed(job)
        disturbance.result()
    assert [row.documents for row in report.reports] == [n_documents]
    written = "".join(logs_of_workers()).count(f"a.jsonl: {n_documents} documents")
    assert written == 1
    assert len(logs_of_workers()) == (1 if is_brief else 2)
    check_undisturbed(job, out)
