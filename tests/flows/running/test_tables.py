import sys
from pathlib import Path

import pytest

from flows.running.tables import print_files, print_table
from tests.terminal import Screen, on_terminal

COLUMNS = ["file", "status", "lines", "documents", "rejected", "truncated", "tokens", "seconds", "documents/s"]
NAMES = ["de/wissen.jsonl.gz", "en/a-corpus-of-some-site/CC-MAIN-2024-10/part-00012.jsonl.zst"]
PRINT_FILES = f"""
from flows.running.tables import print_files
row = dict.fromkeys({COLUMNS!r}, "1,234,567") | {{"status": "embedded"}}
rows = [row | {{"file": name}} for name in {NAMES!r}]
print_files("embed: 2 files embedded in 3.0 s", {COLUMNS!r}, [*rows, row | {{"file": "total"}}], 2, "status")
"""
TABLE = [["annotator", "language", *(f"measure {i}" for i in range(7))]]
TABLE += [["score_education", language, *["0.123\n[0.100, 0.200]"] * 7] for language in ("de", "en", "all")]
PRINT_TABLE = f"""
from flows.running.tables import print_table
print_table({TABLE!r}, 2)
"""


def shown(code: str, columns: int, folder: Path, term: str = "xterm-256color") -> Screen:
    screen = on_terminal([sys.executable, "-c", code], folder, columns, {}, term)
    assert screen.status == 0, screen.text
    return screen


@pytest.mark.parametrize("term", ["xterm-256color", "dumb"])
@pytest.mark.parametrize("columns", [40, 80, 100, 200])
def test_a_table_of_files_fits_the_terminal_and_says_what_it_leaves_out(
    columns: int, term: str, tmp_path: Path
) -> None:
    screen = shown(PRINT_FILES, columns, tmp_path, term)
    assert max(map(len, screen.lines)) <= columns
    heading = screen.lines[2].split()
    left_out = screen.text.partition(f"not shown on {columns} columns: ")[2].replace(",", " ").split()
    assert [*heading, *left_out] == [name for name in COLUMNS if name in heading or name != "status"]
    names = [line.split()[0] for line in screen.lines[4:6]]
    assert names[0] == NAMES[0]
    assert names[1] == (NAMES[1] if columns >= 80 else "…/part-00012.jsonl.zst")
    assert (heading[1] == "status") == (columns == 200)


@pytest.mark.parametrize("columns", [40, 80, 100, 200])
def test_a_table_of_measures_fits_the_terminal_with_all_its_columns(columns: int, tmp_path: Path) -> None:
    screen = shown(PRINT_TABLE, columns, tmp_path)
    assert max(map(len, screen.lines)) <= columns
    for name in TABLE[0][2:]:
        assert name in screen.text
    assert "score_education" in screen.text
    assert screen.text.count("0.123") == 3 * 7


def test_where_there_is_no_terminal_nothing_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    long = "folder/" * 60 + "x.jsonl"
    print_files("title", COLUMNS, [dict.fromkeys(COLUMNS, "1") | {"file": long}, {"file": "total"}], 2, "status")
    out = capsys.readouterr().out
    assert f" {long} " in out and "documents/s" in out and "total" not in out
    print_table([["name", "value"], [long, "1"]], 1)
    assert f" {long} " in capsys.readouterr().out
