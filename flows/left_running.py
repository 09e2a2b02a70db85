"""The runs that a killed process left Running, ended for it."""

from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterParentFlowRunId,
    FlowRunFilterState,
    FlowRunFilterStateType,
    TaskRunFilter,
    TaskRunFilterState,
    TaskRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.states import Crashed

UNFINISHED = [StateType.PENDING, StateType.RUNNING]


def crash_what_is_left(flow: Any, flow_run: FlowRun, state: Any) -> None:
    """Marks a crashed flow's unfinished task runs and flow runs as Crashed.

    A hook of the flows: the worker calls it where the flow's process was killed and can say nothing itself.
    """
    with get_client(sync_client=True) as client:
        _crash_below(client, flow_run.id)


def _crash_below(client: SyncPrefectClient, flow_run: UUID) -> None:
    crashed: Any = Crashed(message="the process of its flow was killed")
    unfinished_tasks = TaskRunFilter(state=TaskRunFilterState(type=TaskRunFilterStateType(any_=UNFINISHED)))
    of_flow = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run]))
    # The API answers with 200 at most; those that are marked make room for others.
    while tasks := client.read_task_runs(flow_run_filter=of_flow, task_run_filter=unfinished_tasks):
        for task in tasks:
            client.set_task_run_state(task.id, crashed, force=True)
    flows_below = FlowRunFilter(
        parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[flow_run]),
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=UNFINISHED)),
    )
    for below in client.read_flow_runs(flow_run_filter=flows_below):
        _crash_below(client, below.id)
        client.set_flow_run_state(below.id, crashed, force=True)
