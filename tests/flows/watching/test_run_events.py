"""The events of a run, as a real server has them."""

from dataclasses import replace
from typing import Any
from uuid import UUID

from prefect import flow
from prefect.client.orchestration import SyncPrefectClient
from prefect.runtime import flow_run

from flows.watching.run_events import RunEvents
from flows.watching.run_progress import Snapshot
from tests.conftest import within
from tests.flows.dask_workers import TOLD_S

BEGUN = Snapshot(9, 0, 0, 0, 0, 0, 0, 0.0, 0, 0, None, 0, {}, [])


@flow(validate_parameters=False)
def watched(*snapshots: Snapshot) -> UUID:
    events = RunEvents()
    for snapshot in snapshots:
        events.show(snapshot)
    events.end(snapshots[-1])
    return UUID(flow_run.get_id())


def events_of(client: SyncPrefectClient, *snapshots: Snapshot) -> list[dict[str, Any]]:
    """Returns the events of a run that had these snapshots."""
    resource = {"id": [f"prefect.flow-run.{watched(*snapshots)}"]}
    wanted = {"event": {"prefix": ["mlfilter."]}, "resource": resource, "order": "ASC"}

    def events() -> Any:
        found = client.request("POST", "/events/filter", json={"filter": wanted}).json()["events"]
        return found if found and found[-1]["event"] == "mlfilter.end" else None

    return list(within(TOLD_S, events))


def told(client: SyncPrefectClient, *snapshots: Snapshot) -> list[tuple[str, str]]:
    """Returns their names and texts."""
    return [(event["event"], event["payload"]["progress"]) for event in events_of(client, *snapshots)]


def names(told: list[tuple[str, str]]) -> list[str]:
    return [name.removeprefix("mlfilter.") for name, _ in told]


def test_a_run_tells_its_progress_once(client: SyncPrefectClient) -> None:
    later = replace(BEGUN, documents=40)
    assert told(client, BEGUN, BEGUN, later, replace(later, seconds_left=9.0)) == [
        ("mlfilter.progress", "0 of 9 files, waiting for the first worker"),
        ("mlfilter.progress", "0 of 9 files, 40 documents, 0.0 documents/s"),
        ("mlfilter.end", "0 of 9 files, 40 documents, 0.0 documents/s, 9.0 s left"),
    ]


def test_a_server_that_gets_events_out_of_order_does_not_take_an_ended_run_for_a_stalled_one(
    client: SyncPrefectClient,
) -> None:
    progress, last, *rejected, end = events_of(client, BEGUN, replace(BEGUN, documents=9, rejected=1))
    assert end["follows"] == last["id"]
    assert [event["follows"] for event in (progress, last, *rejected)] == [None] * 5


def test_a_run_without_workers_is_not_silent(client: SyncPrefectClient) -> None:
    waiting = replace(BEGUN, is_waiting=True)
    assert names(told(client, waiting, waiting, BEGUN, BEGUN)) == ["progress", "progress", "end"]


def test_each_level_of_rejected_lines_is_told_once_and_not_by_the_first_lines(client: SyncPrefectClient) -> None:
    early = replace(BEGUN, documents=500, rejected=400)
    some, many = replace(BEGUN, documents=960, rejected=40), replace(BEGUN, documents=8_900, rejected=1_100)
    events = told(client, early, some, some, many, replace(many, documents=50_000))
    progress, rejected = "progress", [f"rejected.{percent}" for percent in (1, 2, 5, 10)]
    assert names(events) == [progress, progress, *rejected[:2], progress, *rejected[2:], progress, "end"]
    assert events[6][1].startswith("1,100 of 10,000 lines rejected; 0 of 9 files, 8,900 documents, ")


def test_the_share_of_a_few_lines_is_told_at_the_end(client: SyncPrefectClient) -> None:
    few = replace(BEGUN, documents=9, rejected=1)
    assert names(told(client, few)) == ["progress", "rejected.1", "rejected.2", "rejected.5", "end"]


def test_nothing_is_told_outside_a_flow_run() -> None:
    RunEvents().end(BEGUN)
