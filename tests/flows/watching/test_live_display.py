import io
import logging
from typing import Any

import pytest
from prefect.logging.handlers import PrefectConsoleHandler

from flows.watching.live_display import MAX_WORKERS_SHOWN, live_display
from flows.watching.run_progress import Snapshot, UnderWay
from mlfilter_core.work.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    return Terminal()


def snapshot(n_workers: int = 1, file: str = "a/x.jsonl") -> Snapshot:
    under_way = [UnderWay(f"w{i}", Progress(file, 37, share=0.74), 15) for i in range(n_workers)]
    return Snapshot(3, 0, 1, 0, 1137, 1000, 0, 0.6, 12.3, 3456, 3723, 0, {}, under_way)


def shown(terminal: Terminal, now: Snapshot) -> str:
    with live_display("embed", terminal) as display:
        assert display is not None
        display.show(now)
    return terminal.getvalue()


def test_there_is_a_line_for_each_worker_and_one_for_all(terminal: Terminal) -> None:
    text = shown(terminal, snapshot())
    assert "a/x.jsonl" in text
    assert "37 documents in 15.0 s" in text
    assert "embed: 1 of 3 files, 1,137 documents, 12 documents/s, 3,456 tokens/s, 1 h 2 min left" in text


def test_many_workers_do_not_fill_the_screen(terminal: Terminal) -> None:
    frame, more, _ = shown(terminal, snapshot(MAX_WORKERS_SHOWN + 188)).partition("and 188 more files in progress")
    assert more
    assert frame.count("a/x.jsonl") == MAX_WORKERS_SHOWN


def test_names_are_shown_as_they_are(terminal: Terminal) -> None:
    assert "[red]x[/nothing].jsonl" in shown(terminal, snapshot(file="[red]x[/nothing].jsonl"))


def test_it_is_gone_at_the_end(terminal: Terminal) -> None:
    shown(terminal, snapshot())
    assert terminal.getvalue().endswith("\x1b[2K") or "\x1b[2K" in terminal.getvalue().rpartition("embed:")[2]


def test_lines_of_the_log_go_above_it(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    handler: Any = PrefectConsoleHandler(stream=terminal)
    own = handler.console
    monkeypatch.setattr(logging.getLogger(), "handlers", [handler])
    with live_display("embed", terminal) as display:
        assert display is not None
        assert handler.console is not own
        display.show(snapshot())
        logging.getLogger().warning("a line of the log")
    assert handler.console is own
    lines = terminal.getvalue()
    assert lines.index("embed: 1 of 3") < lines.index("a line of the log") < lines.rindex("embed: 1 of 3")


@pytest.mark.parametrize("term", ["dumb", "unknown"])
def test_a_dumb_terminal_shows_nothing(terminal: Terminal, monkeypatch: pytest.MonkeyPatch, term: str) -> None:
    monkeypatch.setenv("TERM", term)
    with live_display("embed", terminal) as display:
        assert display is None
    assert terminal.getvalue() == ""


def test_without_colours_nothing_is_coloured(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    text = shown(terminal, snapshot())
    assert "embed: 1 of 3 files" in text
    assert "\x1b[38" not in text and "\x1b[3" + "1m" not in text


def test_where_nobody_looks_nothing_is_shown() -> None:
    with live_display("embed", io.StringIO()) as display:
        assert display is None
