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

from flows.watching.run_progress import Snapshot, UnderWay, describe
from flows.watching.terminal import can_redraw
from mlfilter_core.wording import duration, end_of_path

MAX_WORKERS_SHOWN = 12  # more would push the log off the screen
BAR_WIDTH, NARROW_BAR_WIDTH, PERCENT_WIDTH, PADDING = 20, 5, 4, 2
NARROW = 72  # columns below which names need the place of counts


class LiveDisplay:
    """Shows the latest snapshot below the lines of the log."""

    def __init__(self, live: Live, flow: str) -> None:
        self._live = live
        self._flow = flow

    def show(self, snapshot: Snapshot) -> None:
        """Replaces the snapshot that is shown."""
        self._live.update(_rendered(snapshot, self._flow, self._live.console.width), refresh=True)


@contextmanager
def live_display(flow: str, stream: TextIO) -> Iterator[LiveDisplay | None]:
    """Provides a display, or None if the stream is not a terminal that can redraw lines, or nothing is to be shown.

    Lines of the log that are written to stderr in the block appear above the display.
    """
    console = Console(file=stream)
    if not can_redraw(stream):
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


def _rendered(snapshot: Snapshot, flow: str, width: int) -> Group:
    bar_width = BAR_WIDTH if width >= NARROW else NARROW_BAR_WIDTH
    room = width - bar_width - PERCENT_WIDTH - 2 * PADDING
    lines = [
        _line(bar_width, file.progress.share, _file_in_words(file, room, width >= NARROW))
        for file in snapshot.under_way[:MAX_WORKERS_SHOWN]
    ]
    n_more = len(snapshot.under_way) - MAX_WORKERS_SHOWN
    more = [Text(f"and {n_more} more files in progress", style="dim")] if n_more > 0 else []
    total = Text(f"{flow}: {describe(snapshot)}", style="bold")  # wrapped between words
    return Group(*lines, *more, _line(bar_width, snapshot.share, total))


def _line(bar_width: int, share: float, words: Text) -> Table:
    line = Table.grid(padding=(0, PADDING))
    line.add_column(width=bar_width)
    line.add_column(width=PERCENT_WIDTH, justify="right")
    line.add_row(ProgressBar(total=1.0, completed=share, width=bar_width), f"{share:.0%}", words)
    return line


def _file_in_words(file: UnderWay, room: int, with_counts: bool) -> Text:
    counted = f"  {file.progress.documents:,} documents in {duration(file.seconds)}" if with_counts else ""
    name = end_of_path(file.progress.file, room - len(counted))
    return Text(name + counted, overflow="ellipsis", no_wrap=True)
