"""A run of many short files on hundreds of workers, some of which are killed.

The workers are processes that sleep instead of encoding, so that hundreds fit on one machine; they are forked, and
replaced when they are killed, as Slurm replaces jobs. Prefect's server, the flow, Dask's scheduler, TLS and the tasks
are those of a real run. Dask's own monitoring of each worker, which on a cluster runs on its node, is off.

    python benchmarks/many_workers.py --json benchmarks/results/many_workers.json
"""

import asyncio
import gc
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import dask
import psutil
from distributed import LocalCluster, Worker
from measure import parser, publish
from prefect import flow

import flows.running.run_files as run_files
from flows.prefect_api import serve
from flows.prefect_api.server import prefect_api
from flows.workers.certificate import security_of, write_certificate
from flows.workers.local import QUIET, SCHEDULER_SETTINGS
from flows.workers.on_worker import PRELOAD
from flows.workers.open_files import allow_open_files
from flows.workers.task_runner import WorkerTaskRunner
from mlfilter_core.config.embedding import EmbeddingJob
from mlfilter_core.embedding.embed_report import EmbedReport
from mlfilter_core.files.task_files import TaskFile, find_files
from mlfilter_core.work.workload import Work, Workload

# What a worker does 2 to 100 times a second beside its tasks. On a cluster its node does it; 500 of them would take all
# CPU of this machine.
UNMONITORED = {
    "distributed.worker.profile.enabled": False,
    "distributed.admin.system-monitor.interval": "60 s",
    "distributed.admin.tick.interval": "60 s",
    "distributed.admin.tick.limit": "1 hour",
    "distributed.worker.http.routes": [],
}
FORK_S = 0.2  # between two workers, as each takes that much CPU to connect
IN_FOLDER = 1000


def main() -> None:
    """Runs the benchmark, or the workers of it."""
    options = parser(__doc__)
    options.add_argument("--workers", type=int, default=500, help="workers (default: 500)")
    options.add_argument("--files", type=int, default=100_000, help="files (default: 100,000)")
    options.add_argument("--seconds", type=float, default=2.0, help="time of each file (default: 2)")
    options.add_argument("--kills", type=int, default=50, help="workers that are killed (default: 50)")
    options.add_argument("--host", nargs=2, metavar=("ADDRESS", "FOLDER"), help="run the workers of a scheduler")
    arguments = options.parse_args()
    if arguments.host:
        host(*arguments.host, arguments.workers)
        return
    with tempfile.TemporaryDirectory() as name, prefect_api(Path(name) / "prefect"):
        figures = measured(Path(name), arguments.workers, arguments.files, arguments.seconds, arguments.kills)
    publish(figures, {"seconds_of_a_file": str(arguments.seconds)}, arguments.json)


@dataclass(frozen=True)
class Sleeping(Work[EmbedReport]):
    """Sleeps for each file; writes down each execution, and a file that stands for the output."""

    REPORT = EmbedReport

    folder: Path
    seconds: float

    def outputs(self, file: TaskFile) -> Sequence[Path]:
        return (file.output(self.folder / "out", ".done"),)

    def finished(self, file: TaskFile, read_content: bool) -> EmbedReport | None:
        return self._report(file, "skipped", 0.0) if self.outputs(file)[0].exists() else None

    def make(self, file: TaskFile) -> EmbedReport:
        with (self.folder / "executions").open("a") as executions:
            executions.write(f"{file.relative}\n")
        time.sleep(self.seconds)
        self.outputs(file)[0].touch(exist_ok=False)
        return self._report(file, "embedded", self.seconds)

    def run(self, file: TaskFile) -> EmbedReport:
        # Without claims and versions of outputs, which would be the nodes' work: this machine has two cores.
        return self.finished(file, read_content=False) or self.make(file)

    def _report(self, file: TaskFile, status: str, seconds: float) -> EmbedReport:
        return EmbedReport(file.relative, "", status, *[0] * 7, seconds=seconds)  # type: ignore[arg-type]


@dataclass(frozen=True)
class ForkedWorkers:
    """Workers that are forked from one process, which replaces those that die."""

    runner: WorkerTaskRunner

    def tend(self, n_tasks: int) -> int:
        return len(self.runner.client.cluster.scheduler.workers)

    def node_of(self, worker: str) -> str:
        return worker

    def blame(self, worker: str, kind: str, task: str) -> None:
        """Does nothing: these workers have no node."""

    def remarks(self) -> list[str]:
        return []


def measured(folder: Path, n_workers: int, n_files: int, seconds: float, n_kills: int) -> dict[str, float]:
    """Returns the figures of one run."""
    corpus, out = folder / "corpus", folder / "out"
    for i in range(n_files):
        path = corpus / f"{i // IN_FOLDER:04}" / f"{i:07}.jsonl"
        if i % IN_FOLDER == 0:
            path.parent.mkdir(parents=True)
            (out / path.parent.name).mkdir(parents=True)
        path.write_bytes(b"\n")
    files = find_files(corpus, "**/*", (".jsonl",))
    job = EmbeddingJob.model_validate(
        {"params": {"input_dir": str(corpus), "output_dir": str(out), "embedding_model": "none"}}
    )
    workload = Workload("embed", files, Sleeping(folder, seconds), folder, is_step=True)
    cost = Cost()

    @contextmanager
    def start_workers(n_tasks: int, logs: Path) -> Iterator[ForkedWorkers]:
        with forked_workers(n_workers, folder, logs) as (workers, host_pid):
            killing = threading.Thread(target=kill, args=(host_pid, n_kills, n_files * seconds / n_workers))
            cost.begin(host_pid)
            killing.start()
            yield workers
            cost.end()
            killing.join()

    @flow(name="embed", validate_parameters=False)
    def embed() -> run_files.RunReport:
        return run_files.run_job("embed", lambda job: workload, job)

    run_files.workers_of = lambda job: start_workers  # type: ignore[assignment]
    report = embed()
    return {**figures_of(report, n_workers), **cost.figures(n_files), **executions(folder, n_files)}


def figures_of(report: run_files.RunReport, n_workers: int) -> dict[str, float]:
    """Returns the share of the workers' time in which they slept for a file, from the first file to the last."""
    started = [done.started for done in report.reports if done.started]
    ended = [done.started + done.seconds for done in report.reports if done.started]
    wall_s = max(ended) - min(started)
    return {
        "files": len(report.reports),
        "failed_files": len(report.failures),
        "workers": n_workers,
        "seconds": wall_s,
        "busy_share": sum(done.seconds for done in report.reports) / (n_workers * wall_s),
        "files_per_s": len(report.reports) / wall_s,
    }


def executions(folder: Path, n_files: int) -> dict[str, float]:
    """Returns how many files were begun again after a kill, and how many were never finished."""
    begun = (folder / "executions").read_text().splitlines()
    n_outputs = sum(1 for _ in (folder / "out").rglob("*.done"))
    return {"begun_again": len(begun) - len(set(begun)), "lost_files": n_files - n_outputs}


class Cost:
    """CPU time and memory of the processes of a run."""

    def begin(self, host_pid: int) -> None:
        """Takes the process that forks the workers."""
        self._me, self._host = psutil.Process(), psutil.Process(host_pid)
        self._began, self._before = time.monotonic(), self._cpu_seconds()

    def end(self) -> None:
        """Takes the times, before the processes end."""
        self._seconds, self._after = time.monotonic() - self._began, self._cpu_seconds()
        self._memory_bytes = self._me.memory_info().rss

    def figures(self, n_files: int) -> dict[str, float]:
        """Returns shares of a core, and CPU time for each file."""
        used = {name: self._after[name] - self._before[name] for name in self._after}
        return {
            **{f"{name}_cores": seconds / self._seconds for name, seconds in used.items()},
            **{f"{name}_ms_per_file": 1000 * seconds / n_files for name, seconds in used.items()},
            "flow_memory_mb": self._memory_bytes / 1e6,
        }

    def _cpu_seconds(self) -> dict[str, float]:
        """Returns the CPU time so far; that of workers includes those that have ended."""
        (server,) = (child for child in self._me.children() if serve.__file__ in child.cmdline())
        workers = [self._host.cpu_times()]
        for child in self._host.children():
            with suppress(psutil.NoSuchProcess):
                workers.append(child.cpu_times())
        return {
            "flow_and_scheduler": sum(self._me.cpu_times()[:2]),
            "server": sum(server.cpu_times()[:2]),
            "all_workers": sum(times.user + times.system for times in workers)
            + self._host.cpu_times().children_user
            + self._host.cpu_times().children_system,
        }


@contextmanager
def forked_workers(n_workers: int, folder: Path, logs: Path) -> Iterator[tuple[ForkedWorkers, int]]:
    """Starts a scheduler in this process, and workers of another one; waits until all have connected."""
    allow_open_files(n_workers, are_elsewhere=True)
    keys = folder / "keys"
    keys.mkdir()
    write_certificate(keys)
    cluster = {"n_workers": 0, "host": "127.0.0.1", "dashboard_address": "127.0.0.1:0", "security": security_of(keys)}
    with (
        dask.config.set(SCHEDULER_SETTINGS),
        WorkerTaskRunner(logs, cluster_class=LocalCluster, cluster_kwargs=cluster) as runner,
    ):
        address = runner.client.cluster.scheduler_address
        command = [sys.executable, __file__, "--workers", str(n_workers), "--host", address, str(folder)]
        with subprocess.Popen(command, env={**os.environ, **QUIET}) as process:
            try:
                runner.client.wait_for_workers(n_workers, timeout=600)
                yield ForkedWorkers(runner), process.pid
            finally:
                process.send_signal(signal.SIGTERM)


def kill(host_pid: int, n_kills: int, seconds: float) -> None:
    """Kills workers at random moments of a run that takes about this long."""
    moments = sorted(random.Random(0).uniform(0, 0.9 * seconds) for _ in range(n_kills))
    began = time.monotonic()
    for moment in moments:
        time.sleep(max(0.0, began + moment - time.monotonic()))
        with suppress(psutil.NoSuchProcess):
            random.choice(psutil.Process(host_pid).children()).kill()


def host(address: str, folder: str, n_workers: int) -> None:
    """Forks workers, and another one for each that dies, until SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: os.killpg(0, signal.SIGKILL))
    os.setpgid(0, 0)
    dask.config.set(UNMONITORED)
    gc.freeze()  # so that the workers share this process's memory
    for number in range(sys.maxsize):
        if number < n_workers:
            time.sleep(FORK_S)
        else:
            os.wait()
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            asyncio.run(work(address, Path(folder), f"job-{number}"))
            os._exit(0)


async def work(address: str, folder: Path, name: str) -> None:
    """Runs one worker until its scheduler ends."""
    security = security_of(folder / "keys")
    local = {"local_directory": str(folder / "dask"), "memory_limit": None, "dashboard": False}
    async with Worker(address, name=name, nthreads=1, security=security, preload=[PRELOAD], **local) as worker:
        await worker.finished()


if __name__ == "__main__":
    main()
