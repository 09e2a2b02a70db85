"""Tells the Prefect server how a run goes, as events.

The automations of deployments/alerts.yaml react to them.
"""

from prefect.events import Event, emit_event
from prefect.runtime import flow_run

from flows.watching.run_progress import Snapshot, describe

PROGRESS, END, REJECTED = "mlfilter.progress", "mlfilter.end", "mlfilter.rejected"
# Percentages that have an event of their own, since automations cannot compare numbers. Arbitrary.
LEVELS = (1, 2, 5, 10, 20, 50)
# Of fewer lines, the share is told only at the end: the first ones say little. Arbitrary.
MIN_LINES = 1000


class RunEvents:
    """Emits the events of a run; does nothing outside a flow run.

    The server stores events, so their number does not grow with the number of files: one for each call of `show`, one
    for each of `LEVELS`, one at the end. A thread of Prefect sends them; they are lost if the API does not answer.
    """

    def __init__(self) -> None:
        self._last: tuple[float, ...] = ()
        self._progress: Event | None = None
        self._levels = list(LEVELS)

    def show(self, snapshot: Snapshot) -> None:
        """Tells that the run goes on, if it has progressed since the last call, or waits for workers."""
        done = snapshot.files_done, snapshot.files_failed, snapshot.documents, snapshot.tokens, snapshot.rejected
        now = *done, snapshot.share
        if now != self._last or snapshot.is_waiting:
            self._progress = _emit(PROGRESS, describe(snapshot))
        self._last = now
        if snapshot.documents + snapshot.rejected >= MIN_LINES:
            self._tell_rejected(snapshot)

    def end(self, snapshot: Snapshot) -> None:
        """Tells that the run has no file left to process.

        A server handles two events at a time, and could take the last progress for a later one than the end: the run
        would seem to have stalled. So this event states which one it follows.
        """
        self._tell_rejected(snapshot)
        _emit(END, describe(snapshot), self._progress)

    def _tell_rejected(self, snapshot: Snapshot) -> None:
        """Tells each level that the share of rejected lines exceeds for the first time."""
        n_lines = snapshot.documents + snapshot.rejected
        while self._levels and 100 * snapshot.rejected > self._levels[0] * n_lines:
            share = f"{snapshot.rejected:,} of {n_lines:,} lines rejected"
            _emit(f"{REJECTED}.{self._levels.pop(0)}", f"{share}; {describe(snapshot)}")


def _emit(event: str, progress: str, follows: Event | None = None) -> Event | None:
    """Emits an event of the present flow run, and returns it. Prefect logs errors, and raises none."""
    run = flow_run.get_id()
    if run is None:
        return None
    resource = {"prefect.resource.id": f"prefect.flow-run.{run}", "prefect.resource.name": str(flow_run.get_name())}
    return emit_event(event, resource, payload={"progress": progress}, follows=follows)
