"""What a command leaves on the screen of a terminal."""

import logging
import sys
from pathlib import Path

import pytest

from flows.watching.terminal import log_on_terminal
from tests.flows.commands.processes import REPOSITORY, api_variables
from tests.flows.conftest import WriteJob
from tests.terminal import Screen, on_terminal

NAMES = ("a/x.jsonl", "b/x.jsonl", "b/y.jsonl")


def embedded(job: Path, columns: int, *options: str, term: str = "xterm-256color") -> Screen:
    line = [sys.executable, "flows/embed.py", "--config", job, *options]
    return on_terminal(line, REPOSITORY, columns, api_variables(), term)


@pytest.mark.parametrize(("columns", "term"), [(100, "xterm-256color"), (40, "dumb")])
def test_a_run_leaves_at_most_one_line_for_each_file_and_none_of_prefect(
    embed_job: WriteJob, columns: int, term: str
) -> None:
    screen = embedded(embed_job(), columns, term=term)
    assert screen.status == 0, screen.text
    assert screen.lines[0].startswith("embed: ")
    table = screen.lines[screen.lines.index(next(line for line in screen.lines if "files embedded in" in line)) :]
    for name in NAMES:
        assert sum(line.strip().startswith(name) for line in table) == 1
        logged = [line for line in screen.text.partition("files embedded in")[0].splitlines() if name in line]
        assert len(logged) == (term == "dumb")
    for word in ("Flow run", "Task run", "Completed", "View at", "still alive", "INFO", "mlfilter_core"):
        assert word not in screen.written
    assert ("\x1b[" in screen.written) == (term != "dumb")


def test_a_quiet_run_prints_nothing_but_warnings_and_errors(embed_job: WriteJob, corpus: Path) -> None:
    screen = embedded(embed_job(), 100, "--quiet")
    assert (screen.status, screen.text) == (0, "")
    (corpus / "a" / "broken.jsonl").write_text('{"txt": "a"}\n')
    screen = embedded(embed_job(), 100, "-q")
    assert screen.status == 1
    assert screen.lines[0].startswith("error: a/broken.jsonl failed: ")
    assert "error: 1 of 4 files failed" in screen.text


def test_a_verbose_run_prints_what_prefect_and_the_workers_log(embed_job: WriteJob) -> None:
    screen = embedded(embed_job(), 200, "--verbose")
    assert screen.status == 0, screen.text
    assert "Finished in state Completed()" in screen.text
    assert "b/y.jsonl: 9 documents, 0 rejected" in screen.text
    assert "(3 of 3 files)" in screen.text


def test_a_run_is_either_quiet_or_verbose(embed_job: WriteJob) -> None:
    screen = embedded(embed_job(), 100, "--quiet", "--verbose")
    assert screen.status == 2
    assert "--quiet and --verbose exclude each other" in screen.text


def test_each_worker_s_warning_is_shown_once(capsys: pytest.CaptureFixture[str]) -> None:
    core = logging.getLogger("mlfilter_core.encoder")
    with log_on_terminal():
        for _ in range(3):
            core.warning("one GPU is %s", "slow")
        core.info("details")
    assert [line.partition(" ")[2] for line in capsys.readouterr().err.splitlines()] == ["warning: one GPU is slow"]
