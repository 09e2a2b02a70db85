"""Shows a run on the terminal: one line for each file in progress, and one for the whole run."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from flows.watching.run_progress import Snapshot, describe
from mlfilter_core.wording import duration

MAX_WORKERS_SHOWN = 12  # more would push the log off the screen
BAR_WIDTH = 20


class LiveDisplay:
    """Shows the latest snapshot below the lines of the log."""

    def __init__(self, live: Live, flow: str) -> None:
        self._live = live
        self._flow = flow

    def show(self, snapshot: Snapshot) -> None:
        """Replaces the snapshot that is shown."""
        self._live.update(_rendered(snapshot, self._flow), refresh=True)


@contextmanager
def live_display(flow: str, stream: TextIO) -> Iterator[LiveDisplay | None]:
    """Provides a display, or None if the stream is not a terminal that can redraw lines."""
    console = Console(file=stream)
    if not console.is_terminal or console.is_dumb_terminal:
        yield None
        return
    with Live(console=console, transient=True, auto_refresh=False, redirect_stdout=False) as live:
        with _logs_above(console):
            yield LiveDisplay(live, flow)


@contextmanager
def _logs_above(console: Console) -> Iterator[None]:
    """Makes Prefect's log handler write through the display's console, which puts log lines above the display."""
    handlers: list[Any] = [handler for handler in logging.getLogger().handlers if hasattr(handler, "console")]
    before = [handler.console for handler in handlers]
    for handler in handlers:
        handler.console = console
    try:
        yield
    finally:
        for handler, own in zip(handlers, before, strict=True):
            handler.console = own


def _rendered(snapshot: Snapshot, flow: str) -> Group:
    lines = Table.grid(padding=(0, 2))
    for file in snapshot.under_way[:MAX_WORKERS_SHOWN]:
        lines.add_row(
            ProgressBar(total=1.0, completed=file.progress.share, width=BAR_WIDTH),
            Text(f"{file.progress.share:.0%}", justify="right"),
            Text(file.progress.file, overflow="ellipsis", no_wrap=True),
            Text(f"{file.progress.documents:,} documents in {duration(file.seconds)}", no_wrap=True),
        )
    n_more = len(snapshot.under_way) - MAX_WORKERS_SHOWN
    more = [Text(f"and {n_more} more files in progress", style="dim")] if n_more > 0 else []
    total = Table.grid(padding=(0, 2))
    total.add_row(
        ProgressBar(total=1.0, completed=snapshot.share, width=BAR_WIDTH),
        Text(f"{snapshot.share:.0%}", justify="right"),
        Text(f"{flow}: {describe(snapshot)}", style="bold", overflow="ellipsis", no_wrap=True),
    )
    return Group(lines, *more, total)
