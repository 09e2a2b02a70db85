"""The deployments of prefect.yaml, on a real server and a real process worker."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from prefect.client.orchestration import SyncPrefectClient
from prefect.settings import PREFECT_API_URL
from prefect.utilities.importtools import import_object

from mlfilter_core.config import AnnotationJob, EmbeddingJob
from mlfilter_core.job_files import load_job
from tests.flows.conftest import WriteJob

REPOSITORY = Path(__file__).parents[2]
DEPLOYMENTS = yaml.safe_load((REPOSITORY / "prefect.yaml").read_text())["deployments"]


def prefect(*arguments: str) -> None:
    environment = {**os.environ, "PREFECT_API_URL": str(PREFECT_API_URL.value())}
    line = [sys.executable, "-m", "prefect", "--no-prompt", *arguments]
    done = subprocess.run(line, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda deployment: deployment["entrypoint"])
def test_a_deployment_names_a_flow_and_job_files_that_are_valid(deployment: dict[str, dict[str, str]]) -> None:
    import_object(str(deployment["entrypoint"]))
    for path in deployment["parameters"].values():
        load_job(REPOSITORY / path, AnnotationJob if "annotate" in path else EmbeddingJob)


def test_a_deployed_flow_runs_on_a_process_worker(
    embed_job: WriteJob, tmp_path: Path, client: SyncPrefectClient
) -> None:
    prefect("work-pool", "create", "mlfilter-local", "--type", "process", "--overwrite")
    prefect("deploy", "--all")
    prefect("deployment", "run", "embed/local", "--params", json.dumps({"config": str(embed_job())}))
    prefect("worker", "start", "--pool", "mlfilter-local", "--run-once")
    (run,) = client.read_flow_runs(limit=1, sort="EXPECTED_START_TIME_DESC")
    assert run.state is not None
    assert (run.state.type, run.deployment_id is not None) == ("COMPLETED", True)
    assert len(list((tmp_path / "out" / "embeddings").rglob("*.h5"))) == 3
