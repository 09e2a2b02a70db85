"""The deployments of prefect.yaml, on a real server and a real process worker."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
import pytest
import yaml
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId, FlowRunFilterParentFlowRunId
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import PrefectHTTPStatusError
from prefect.states import Cancelling, Scheduled

from mlfilter_core.config.annotation import AnnotationJob
from mlfilter_core.config.clustering import ClusterJob
from mlfilter_core.config.deduplication import DeduplicationJob
from mlfilter_core.config.embedding import EmbeddingJob
from mlfilter_core.config.filtering import FilterJob
from mlfilter_core.config.job_files import load_job
from mlfilter_core.config.training import TrainingJob
from mlfilter_core.embedding_store.reader import EmbeddingFile
from mlfilter_core.job_kinds import load_any_job
from tests.conftest import within
from tests.flows.commands.processes import all_gone, prefect, server_environment
from tests.flows.conftest import WriteJob

REPOSITORY = Path(__file__).parents[2]
JOB_FILES = sorted((REPOSITORY / "deployments").glob("*/*.yaml"))
POOLS = {"local": "mlfilter-local", "prod": "mlfilter-prod"}
FLOWS = ("embed", "train_head", "cluster", "deduplicate", "annotate", "filter", "pipeline")
NAMES = [f"{flow}/{place}" for flow in FLOWS for place in POOLS]
KINDS = {"EmbeddingJob", "TrainingJob", "ClusterJob", "DeduplicationJob", "AnnotationJob", "FilterJob"}
BY_NAME = {
    "embed": EmbeddingJob,
    "train_head": TrainingJob,
    "cluster": ClusterJob,
    "deduplicate": DeduplicationJob,
    "annotate": AnnotationJob,
    "filter": FilterJob,
}
ON_CPUS = ("train_head", "cluster", "deduplicate", "annotate", "filter")
# Numbers of any sign.
UNBOUNDED = {"job_id_position", "threshold"}
# Four times the time in which a flow and its worker start and end on two busy cores.
RUN_S = 120
CANCEL_S = 60
LOOK_S = 0.2
# With this, each file has its own state.
ONE_BY_ONE = {"files_per_task": 1}

Start = Callable[..., UUID]


@pytest.fixture(scope="module")
def deployed(api: None) -> None:
    for pool in POOLS.values():
        prefect("work-pool", "create", pool, "--type", "process", "--overwrite")
    prefect("deploy", "--all")


@pytest.fixture(scope="module")
def worker(deployed: None) -> Iterator[psutil.Process]:
    line = [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOLS["local"]]
    with subprocess.Popen(
        line, env=server_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        yield psutil.Process(process.pid)
        process.kill()  # a regular end would wait for a run that a failed test left


@pytest.fixture
def start(worker: psutil.Process, client: SyncPrefectClient) -> Start:
    """Starts a run of a deployment, as the form in the UI does."""

    def start_run(name: str, **parameters: Any) -> UUID:
        return client.create_flow_run_from_deployment(client.read_deployment_by_name(name).id, parameters=parameters).id

    return start_run


@pytest.fixture
def long_corpus(corpus: Path) -> Path:
    """The corpus with one more file that takes long enough to be interrupted."""
    lines = (json.dumps({"id": str(i), "text": "word " * (1 + i % 9)}) + "\n" for i in range(200_000))
    (corpus / "z.jsonl").write_text("".join(lines))
    return corpus


def written(job_file: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(job_file.read_text())
    return content


def ended(client: SyncPrefectClient, run: UUID, seconds: float = RUN_S) -> tuple[str, str]:
    """Waits for the end of a run; returns its state and the state's message."""

    def state() -> Any:
        return client.read_flow_run(run).state

    within(seconds, lambda: state().is_final())
    return state().name, state().message


def tasks(client: SyncPrefectClient, run: UUID) -> dict[str, list[str]]:
    """Returns the states of a run's task runs, by name, in the order of their starts."""
    of_run = FlowRunFilter(id=FlowRunFilterId(any_=[run]))
    states: dict[str, list[str]] = {}
    for task in sorted(client.read_task_runs(flow_run_filter=of_run), key=lambda task: task.created):
        states.setdefault(task.name, []).append(task.state_name)
    return states


def below(client: SyncPrefectClient, run: UUID) -> list[FlowRun]:
    """Returns the flow runs that a flow run has started."""
    of_run = FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[run]))
    return client.read_flow_runs(flow_run_filter=of_run)


def processes_in_the_middle_of_a_file(worker: psutil.Process, output: Path) -> list[psutil.Process]:
    """Waits until the long file is in progress, whichever the worker took first; returns the run's processes."""
    within(RUN_S, lambda: any(path.stat().st_size for path in output.rglob(".z.h5.*")))
    return worker.children(recursive=True)


@pytest.mark.parametrize("job_file", JOB_FILES, ids=lambda path: "/".join(path.parts[-2:]))
def test_every_job_file_that_is_shipped_is_valid(job_file: Path) -> None:
    job = load_any_job(job_file, {})
    assert type(job) is BY_NAME[job_file.stem]
    assert job.running_on_slurm == job_file.parent.name.startswith("slurm")


def test_every_page_makes_the_pools_that_it_needs_and_runs_deployments_that_exist() -> None:
    pages = {path: path.read_text() for path in (REPOSITORY / "README.md", *(REPOSITORY / "docs").rglob("*.md"))}
    deploying = [text for text in pages.values() if "deploy --all" in text]
    assert len(deploying) == 2
    for text in deploying:  # a missing pool ends `prefect deploy --all`
        created = set(re.findall(r"^prefect work-pool create (\S+) --type process", text, re.MULTILINE))
        assert created == set(POOLS.values())
        assert set(re.findall(r"prefect worker start --pool (\S+?)'?(?:\s|$)", text)) <= created
    named = {name for text in pages.values() for name in re.findall(r"prefect deployment run (\S+)", text)}
    assert named >= {"pipeline/local", "embed/prod", "train_head/prod", "annotate/prod", "filter/prod", "pipeline/prod"}
    assert named <= set(NAMES)


def test_paths_of_the_job_files_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CORPUS", "OUTPUT", "ENCODER", "HEADS"):
        monkeypatch.setenv(f"MLFILTER_{name}", f"/{name.lower()}")
    params = load_job(REPOSITORY / "deployments/slurm-gpu/embed.yaml", EmbeddingJob).params
    assert (params.input_dir, params.output_dir) == (Path("/corpus"), Path("/output"))
    assert params.embedding_model == "/encoder"
    scoring = load_job(REPOSITORY / "deployments/slurm-cpu/annotate.yaml", AnnotationJob).params
    assert scoring.embeddings_directory == params.embedding_output_dir
    assert scoring.regression_head_checkpoints["toxicity"] == "/heads/toxicity.safetensors"


@pytest.mark.parametrize("name", NAMES)
def test_a_deployment_says_what_it_does_and_where(deployed: None, client: SyncPrefectClient, name: str) -> None:
    deployment = client.read_deployment_by_name(name)
    flow, place = name.split("/")
    assert deployment.description
    assert {"mlfilter", place} < set(deployment.tags)
    assert deployment.work_pool_name == POOLS[place]
    assert deployment.work_queue_name == ("default" if place == "local" else "cpu" if flow in ON_CPUS else "gpu")
    assert deployment.enforce_parameter_schema
    assert deployment.concurrency_options is not None
    assert deployment.concurrency_options.collision_strategy == "ENQUEUE"
    for parameter, value in deployment.parameters.items():
        if parameter.endswith("config"):
            assert REPOSITORY / value in JOB_FILES


@pytest.mark.parametrize("name", NAMES)
def test_the_form_of_a_deployment_explains_and_bounds_every_field(
    deployed: None, client: SyncPrefectClient, name: str
) -> None:
    schema = client.read_deployment_by_name(name).parameter_openapi_schema
    assert schema is not None
    fields = dict(schema["properties"])
    jobs = KINDS & schema["definitions"].keys()
    assert len(jobs) == (6 if name.startswith("pipeline") else 1)
    for definition in schema["definitions"].values():
        fields |= definition["properties"]
    assert len(fields) > 40
    for field, about in fields.items():
        assert about["description"], field
        for option in about.get("anyOf", [about]):
            if option.get("type") in ("integer", "number") and field not in UNBOUNDED:
                assert {"minimum", "exclusiveMinimum"} & option.keys(), field


def test_overrides_on_the_command_line_reach_the_run(
    embed_job: WriteJob, tmp_path: Path, worker: psutil.Process, client: SyncPrefectClient
) -> None:
    overrides = json.dumps({"params.glob_pattern": "**/*x*.jsonl"})
    arguments = ["--param", f"config={embed_job()}", "--param", f"overrides={overrides}"]
    prefect("deployment", "run", "embed/local", *arguments, "--flow-run-name", "only-x")
    (run,) = [run for run in client.read_flow_runs() if run.name == "only-x"]
    assert ended(client, run.id)[0] == "Completed"
    assert {path.parent.name for path in (tmp_path / "out").rglob("x.h5")} == {"a", "b"}
    assert not list((tmp_path / "out").rglob("y.h5"))


def test_a_parameter_out_of_its_bounds_is_refused_before_the_run(start: Start, embed_job: WriteJob) -> None:
    job = written(embed_job(batch_size=0))
    with pytest.raises(PrefectHTTPStatusError, match=r"batch_size'\. Failure reason: 0 is less than the minimum of 1"):
        start("embed/local", config=job)
    with pytest.raises(PrefectHTTPStatusError, match=r"field 'overrides'\. Failure reason: 'params\.batch_size=8'"):
        start("embed/local", overrides="params.batch_size=8")


def test_a_wrong_override_fails_the_run_with_words(
    start: Start, embed_job: WriteJob, client: SyncPrefectClient
) -> None:
    run = start("embed/local", config=written(embed_job()), overrides={"params.batchsize": 8})
    assert ended(client, run) == (
        "Failed",
        "the job: 1 problem\n  params.batchsize: unknown field; did you mean batch_size?",
    )


def test_a_retry_skips_finished_files_and_does_the_failed_again(
    start: Start, embed_job: WriteJob, corpus: Path, tmp_path: Path, client: SyncPrefectClient
) -> None:
    (corpus / "a" / "bad.jsonl").write_text('{"txt": "a"}\n')
    run = start("embed/local", config=written(embed_job()), overrides=ONE_BY_ONE)
    state, message = ended(client, run)
    assert state == "Failed"
    assert "1 of 4 files failed; the others are finished" in message
    finished = {path: path.stat().st_ino for path in (tmp_path / "out").rglob("*.h5")}

    (corpus / "a" / "bad.jsonl").write_text('{"text": "mended"}\n')
    client.set_flow_run_state(run, Scheduled(name="AwaitingRetry", message="Retry from the UI"))
    assert ended(client, run)[0] == "Completed"
    assert client.read_flow_run(run).run_count == 2
    assert {path: path.stat().st_ino for path in finished} == finished
    assert tasks(client, run) == {
        "embed a/bad.jsonl": ["Failed", "Completed"],
        "embed a/x.jsonl": ["Completed"],
        "embed b/x.jsonl": ["Completed"],
        "embed b/y.jsonl": ["Completed"],
    }


def test_a_cancelled_run_ends_within_a_minute_and_leaves_complete_files_only(
    start: Start,
    embed_job: WriteJob,
    long_corpus: Path,
    tmp_path: Path,
    worker: psutil.Process,
    client: SyncPrefectClient,
) -> None:
    run = start("embed/local", config=written(embed_job()), overrides=ONE_BY_ONE)
    processes = processes_in_the_middle_of_a_file(worker, tmp_path / "out")
    client.set_flow_run_state(run, Cancelling(), force=True)
    assert ended(client, run, CANCEL_S)[0] == "Cancelled"
    within(LOOK_S, lambda: all_gone(processes))
    assert tasks(client, run).pop("embed z.jsonl") == ["Cancelled"]
    assert {state for states in tasks(client, run).values() for state in states} == {"Completed", "Cancelled"}
    files = list((tmp_path / "out").rglob("*.h5"))
    assert {path.stem for path in files} <= {"x", "y"}
    for path in files:
        with EmbeddingFile(path, "train") as file:
            assert file.provenance is not None


def test_nothing_stays_running_when_the_process_of_a_pipeline_is_killed(
    start: Start,
    embed_job: WriteJob,
    annotate_job: WriteJob,
    long_corpus: Path,
    tmp_path: Path,
    worker: psutil.Process,
    client: SyncPrefectClient,
) -> None:
    jobs = {"embed_config": written(embed_job()), "annotate_config": written(annotate_job())}
    others = dict.fromkeys(f"{step}_config" for step in ("cluster", "train", "deduplicate", "filter"))
    run = start("pipeline/local", **jobs, **others, embed_overrides=ONE_BY_ONE)
    processes = processes_in_the_middle_of_a_file(worker, tmp_path / "out")
    worker.children()[0].kill()
    assert ended(client, run)[0] == "Crashed"
    within(RUN_S, lambda: all_gone(processes))
    (embedding,) = below(client, run)
    assert ended(client, embedding.id)[0] == "Crashed"
    assert tasks(client, embedding.id)["embed z.jsonl"] == ["Crashed"]
    within(RUN_S, lambda: "Running" not in str(tasks(client, run)) + str(tasks(client, embedding.id)))
