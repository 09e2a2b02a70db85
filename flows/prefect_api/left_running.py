"""Ensures that no run stays Running in the API after its process was killed.

A killed process cannot report its state, and a Prefect worker that is stopped kills the processes of its flows without
reporting theirs. So each run has a guard: a separate process in a separate session that waits for the run's process to
end, and loads Prefect only if that process did not report a regular end. It is started by its path: the working folder
may have a package `flows` of its own.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from uuid import UUID

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

FAREWELL = "farewell"
# A Prefect worker reports the death of a flow's process within a second, with its exit status.
GRACE_S = 5


@contextmanager
def never_left_running() -> Iterator[None]:
    """Decorates a flow's function: if its process is killed, the flow run and all its subruns end as Crashed."""
    from prefect.runtime import flow_run
    from prefect.settings import get_current_settings

    if flow_run.get_parent_flow_run_id():  # the outermost run has a guard
        yield
        return
    guard = subprocess.Popen(
        [sys.executable, "-P", __file__, str(flow_run.get_id())],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        env={**os.environ, **get_current_settings().to_environment_variables(exclude_unset=True)},
    )
    try:
        yield
    finally:
        guard.communicate(FAREWELL)


def end_what_is_left(flow_run: UUID) -> None:
    """Ends a flow run and all its subruns on behalf of its dead process.

    Unfinished runs become Crashed; a run that was being cancelled becomes Cancelled.
    """
    from prefect.client.orchestration import get_client
    from prefect.states import Cancelled

    with get_client(sync_client=True) as client:
        _crash_below(client, flow_run)
        state = client.read_flow_run(flow_run).state
        if state is not None and state.is_running():
            client.set_flow_run_state(flow_run, _crashed(), force=True)
        elif state is not None and state.is_cancelling():
            client.set_flow_run_state(flow_run, Cancelled(), force=True)


def _crash_below(client: "SyncPrefectClient", flow_run: UUID) -> None:
    from prefect.client.schemas.filters import FlowRunFilter, TaskRunFilter

    unfinished = {"state": {"type": {"any_": ["PENDING", "RUNNING"]}}}
    of_flow = FlowRunFilter.model_validate({"id": {"any_": [flow_run]}})
    below = FlowRunFilter.model_validate({"parent_flow_run_id": {"any_": [flow_run]}, **unfinished})

    def tasks() -> set[UUID]:  # the API returns 200 at most
        filter_ = TaskRunFilter.model_validate(unfinished)
        return {task.id for task in client.read_task_runs(flow_run_filter=of_flow, task_run_filter=filter_)}

    ended: set[UUID] = set()
    while left := tasks() - ended:
        for task in left:
            client.set_task_run_state(task, _crashed(), force=True)
        ended |= left
    for run in client.read_flow_runs(flow_run_filter=below):
        _crash_below(client, run.id)
        client.set_flow_run_state(run.id, _crashed(), force=True)


def _crashed() -> Any:
    from prefect.states import Crashed

    return Crashed(message="the process of the flow was killed")


def main() -> None:
    if sys.stdin.read() != FAREWELL:
        time.sleep(GRACE_S)
        end_what_is_left(UUID(sys.argv[1]))


if __name__ == "__main__":
    main()
