"""Real Dask workers and a real Prefect server, shared by all tests that run flows."""

import os
from collections.abc import Iterator
from typing import Any

import dask
import pytest
from distributed.utils import get_mp_context
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import TaskRun

from flows.prefect_api.server import prefect_api
from flows.running.fan_out import Outcome, Workers, fan_out
from flows.workers.local import LocalWorkers, local_workers
from mlfilter_core.config.execution import LocalSettings
from tests.conftest import within

# On a busy machine, Prefect reports an event to its server some time later.
TOLD_S = 60
PRELOADED = [
    *("distributed.worker", "mlfilter_core.encoder.loading", "transformers.models.bert.modeling_bert"),
    *("flows.workers.on_worker", "flows.embed", "flows.annotate", "flows.train_head", "flows.filter"),
]


@pytest.fixture(scope="session", autouse=True)
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One Prefect server for all tests."""
    os.environ["PREFECT_SERVER_SERVICES_EVENT_PERSISTER_ENABLED"] = "true"  # tests look at the events
    with prefect_api(tmp_path_factory.mktemp("prefect")):
        yield


@pytest.fixture
def client(api: None) -> Iterator[SyncPrefectClient]:
    """A client of the Prefect server."""
    with get_client(sync_client=True) as client:
        yield client


@pytest.fixture(scope="session", autouse=True)
def fast_workers() -> Iterator[None]:
    """Forks workers from a process that has loaded their modules, as loading takes 8 s of CPU time.

    They inherit the environment of the first test; tests of the environment use `spawned_workers`. Runs in separate
    processes start workers in the usual way.
    """
    with dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"}):
        get_mp_context().set_forkserver_preload(PRELOADED)  # its first call sets Dask's own list
        yield


@pytest.fixture
def spawned_workers() -> Iterator[None]:
    """Starts workers as new processes in the environment of the test."""
    with dask.config.set({"distributed.worker.multiprocessing-method": "spawn"}):
        yield


@pytest.fixture(scope="module")
def workers(api: None, fast_workers: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalWorkers]:
    """Two workers for all tests of a module; tests may kill them, and Dask restarts them."""
    with local_workers(LocalSettings(workers=2), False, "auto", 100, tmp_path_factory.mktemp("logs")) as workers:
        yield workers


class Items(list[str]):
    """Items for `fan_out`, taken from the front."""

    def take(self, n_workers: int) -> str:
        return self.pop(0)


def outcomes(workers: Workers, a_task: Any, items: list[str], **parameters: Any) -> dict[str, Outcome[str, Any]]:
    """Runs a task for each item, in a flow; returns the outcomes by item."""

    @flow(name="fan-out", validate_parameters=False)
    def run() -> dict[str, Outcome[str, Any]]:
        return {outcome.item: outcome for outcome in fan_out(workers, a_task, Items(items), parameters)}

    return run()


def last_task_runs(client: SyncPrefectClient, n: int) -> list[TaskRun]:
    """Returns the last task runs, newest first, once the server knows that they have ended."""

    def ended() -> list[TaskRun]:
        runs = client.read_task_runs(limit=n, sort="EXPECTED_START_TIME_DESC")
        return runs if all(run.state is not None and run.state.is_final() for run in runs) else []

    return within(TOLD_S, ended)
