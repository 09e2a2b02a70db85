"""Takes snapshots of a run while it lasts, and shows them."""

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from pathlib import Path

from flows.watching.live_display import live_display
from flows.watching.logs import PROGRESS
from flows.watching.metrics import metrics_served
from flows.watching.progress_artifacts import ProgressArtifact
from flows.watching.run_events import RunEvents
from flows.watching.run_progress import RunProgress, Snapshot, describe
from flows.watching.stalls import Stalls

Show = Callable[[Snapshot], None]

LOOK_S = 0.5
ARTIFACT_S = 5.0  # people who open the UI expect to see progress
LOG_S = 60.0
EVENT_S = 60.0  # far below the 10 minutes of deployments/alerts.yaml; the server stores each event for a week

_log = logging.getLogger(__name__)
_progress = logging.getLogger(PROGRESS)


@contextmanager
def watching(
    progress: RunProgress, flow: str, metrics_port: int | None, input_dir: Path, output_dir: Path
) -> Iterator[None]:
    """Shows a run during the block: on the terminal if there is one, in the Prefect UI, in the log, to Prometheus.

    Args:
        progress: Progress of the run, which the caller updates.
        flow: Name of the flow.
        metrics_port: Port for Prometheus; None serves nothing.
        input_dir: Folder of the files of the run.
        output_dir: Folder of its outputs.

    Raises:
        ConfigError: The port is taken.
    """
    artifact, events = ProgressArtifact(f"{flow.replace('_', '-')}-progress"), RunEvents()
    with metrics_served(progress, flow, metrics_port), live_display(flow, sys.stderr) as display:
        shown: list[tuple[float, Show]] = [
            (ARTIFACT_S, artifact.show),
            (EVENT_S, events.show),
            (LOOK_S, Stalls(input_dir, output_dir).show),
            (LOG_S, lambda snapshot: _progress.info("%s: %s", flow, describe(snapshot))),
        ]
        if display is not None:
            shown.append((LOOK_S, display.show))
        events.show(progress.snapshot())
        is_over = threading.Event()
        watcher = threading.Thread(target=copy_context().run, args=(_watch, progress, shown, is_over), name="watcher")
        watcher.start()
        try:
            yield
        finally:
            is_over.set()
            watcher.join()
            events.end(progress.snapshot())
            artifact.show(progress.snapshot())


def _watch(progress: RunProgress, shown: list[tuple[float, Show]], is_over: threading.Event) -> None:
    due = [time.monotonic() + every_s for every_s, _ in shown]
    while not is_over.wait(LOOK_S):
        snapshot = progress.snapshot()
        for i, (every_s, show) in enumerate(shown):
            if time.monotonic() < due[i]:
                continue
            due[i] = time.monotonic() + every_s
            try:
                show(snapshot)
            except Exception:  # a run does not fail because it cannot be shown
                _log.exception("cannot show the progress of the run")
