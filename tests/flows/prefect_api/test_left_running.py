"""States that are reported on behalf of a killed process."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest
from prefect import flow, task
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import State
from prefect.states import Cancelling, Completed, Running

from flows.prefect_api import left_running
from flows.prefect_api.left_running import GRACE_S, end_what_is_left, never_left_running
from tests.conftest import within
from tests.flows.commands.processes import api_variables, running_below

# More than the API returns at a time.
N_TASKS = 205
# A process starts and loads Prefect, and so does its guard.
START_S = 60
WAITING = """
import time
from prefect import flow, task
from flows.prefect_api.left_running import never_left_running

@task
def wait() -> None:
    open({sign!r}, "w").close()
    time.sleep(600)

@flow(flow_run_name="to be killed")
@never_left_running()
def waiting() -> None:
    wait()

waiting()
"""


@flow
def outer() -> None: ...


@flow
def inner() -> None: ...


@task
def one() -> None: ...


@pytest.fixture
def waiting(tmp_path: Path, api: None) -> Iterator["subprocess.Popen[bytes]"]:
    """A process whose flow is in the middle of a task."""
    sign = tmp_path / "started"
    environment = {**os.environ, **api_variables()}
    with subprocess.Popen([sys.executable, "-c", WAITING.format(sign=str(sign))], env=environment) as process:
        within(START_S, sign.exists)
        yield process
        process.kill()


def final_state(client: SyncPrefectClient, run: UUID) -> State | None:
    state = client.read_flow_run(run).state
    return state if state is not None and state.is_final() else None


def states(client: SyncPrefectClient, run: UUID) -> list[str | None]:
    """Returns the states of a flow run's task runs."""
    of_run = FlowRunFilter(id=FlowRunFilterId(any_=[run]))
    pages = [client.read_task_runs(flow_run_filter=of_run, offset=offset) for offset in (0, 200)]
    return [task.state_name for page in pages for task in page]


def test_a_flow_whose_process_is_killed_ends_as_crashed(
    waiting: "subprocess.Popen[bytes]", client: SyncPrefectClient
) -> None:
    (run,) = [run for run in client.read_flow_runs() if run.name == "to be killed"]
    # Prefect reports tasks some time after they have begun.
    within(START_S, lambda: states(client, run.id) == ["Running"])
    waiting.kill()
    state = within(GRACE_S + START_S, lambda: final_state(client, run.id))
    assert (state.name, state.message) == ("Crashed", "the process of the flow was killed")
    assert states(client, run.id) == ["Crashed"]


def test_a_guard_goes_with_its_run() -> None:
    guarded = flow(never_left_running()(outer.fn))
    assert guarded(return_state=True).is_completed()
    assert not running_below(os.getpid(), left_running.__file__)


def test_every_unfinished_run_below_becomes_crashed(client: SyncPrefectClient) -> None:
    run = client.create_flow_run(outer, state=Running())
    call = client.create_task_run(one, run.id, dynamic_key="call", state=Running())
    below = client.create_flow_run(inner, parent_task_run_id=call.id, state=Running())
    for i in range(N_TASKS):
        client.create_task_run(one, below.id, dynamic_key=str(i), state=Running())
    client.create_task_run(one, below.id, dynamic_key="done", state=Completed())

    end_what_is_left(run.id)
    assert [client.read_flow_run(id_).state_name for id_ in (run.id, below.id)] == ["Crashed", "Crashed"]
    assert states(client, run.id) == ["Crashed"]
    assert sorted(map(str, states(client, below.id))) == ["Completed"] + ["Crashed"] * N_TASKS


def test_a_run_that_was_being_cancelled_becomes_cancelled(client: SyncPrefectClient) -> None:
    run = client.create_flow_run(outer, state=Cancelling())
    end_what_is_left(run.id)
    assert client.read_flow_run(run.id).state_name == "Cancelled"


def test_finished_runs_and_those_of_other_flows_are_left_alone(client: SyncPrefectClient) -> None:
    other = client.create_flow_run(outer, state=Running())
    client.create_task_run(one, other.id, dynamic_key="0", state=Running())
    run = client.create_flow_run(outer, state=Completed())
    end_what_is_left(run.id)
    assert client.read_flow_run(run.id).state_name == "Completed"
    assert states(client, other.id) == ["Running"]
