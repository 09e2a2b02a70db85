"""Tables that fit the terminal: names are never broken, and what does not fit is named."""

import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mlfilter_core.wording import end_of_path

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

LOG_WIDTH = 200  # of text that is not for a terminal; wider tables keep their width
MIN_NAME_WIDTH = 12
HEIGHT = 25  # has no effect on what is printed


def console() -> "Console":
    """Returns where results are printed: as wide as the terminal, or wide enough for names and numbers in a log."""
    from rich.console import Console

    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else LOG_WIDTH
    # With a height: otherwise rich takes 80 columns for terminals that cannot redraw.
    return Console(width=width, height=HEIGHT, highlight=False)


def print_prose(text: str) -> None:
    """Prints a line, broken between words where the terminal ends."""
    from rich.text import Text

    console().print(Text(text), soft_wrap=not sys.stdout.isatty())


def print_table(table: Sequence[Sequence[str]], n_names: int) -> None:
    """Prints rows below the first, which is the heading; all but the first columns are numbers.

    If it is too wide for the terminal, its rows become columns, or blocks with a line for each column.
    """
    screen, drawn = console(), _drawn(table[0], table[1:], n_names)
    if not sys.stdout.isatty():
        screen.width = max(screen.width, _width(drawn))
    if _width(drawn) > screen.width:
        named = [
            [", ".join(filter(None, row[:n_names])), *(cell.replace("\n", " ") for cell in row[n_names:])]
            for row in table
        ]
        heading, *rows = zip(*named, strict=True)
        drawn = _drawn(heading, rows, 1)
        if _width(drawn) > screen.width:
            drawn = _in_blocks(named)
            screen.print()
    screen.print(drawn)


def print_files(
    title: str, columns: Sequence[str], rows: Sequence[Mapping[str, str]], n_texts: int, spare: str | None = None
) -> None:
    """Prints a row for each file, the last of which is the total.

    Columns that do not fit the terminal are left out, from the right, and named below the table. A path of which only
    the end fits is shown by that.

    Args:
        title: Line above the table.
        columns: Names of the columns; the first has the names of the files.
        rows: Values by column; a missing one is shown as empty.
        n_texts: Number of columns at the beginning that are not numbers.
        spare: Column whose content the title says, which is left out before any other.
    """
    screen, shown = console(), list(columns)

    def drawn() -> "Table":
        cells = [[row.get(name, "") for name in shown] for row in rows]
        *files, total = cells
        n_shown_texts = sum(name in columns[:n_texts] for name in shown)
        return _drawn(shown, files, n_shown_texts, total if any(total[1:]) else None)

    if sys.stdout.isatty():
        if spare is not None and _width(drawn()) > screen.width:
            shown.remove(spare)
        while len(shown) > 2 and _width(drawn()) > screen.width:
            shown.pop()
        too_wide = _width(drawn()) - screen.width
        if too_wide > 0:
            name, longest = shown[0], max(len(row[shown[0]]) for row in rows)
            room = max(MIN_NAME_WIDTH, longest - too_wide)
            rows = [{**row, name: end_of_path(row[name], room)} for row in rows]
    else:
        screen.width = max(screen.width, _width(drawn()))
    print(title)
    screen.print(drawn())
    if left_out := [name for name in columns if name not in (*shown, spare)]:
        print_prose(f"not shown on {screen.width} columns: {', '.join(left_out)}")


def _in_blocks(table: Sequence[Sequence[str]]) -> "Table":
    """Returns a table with a block for each row, and a line for each of its values."""
    from rich.table import Table
    from rich.text import Text

    blocks = Table.grid(padding=(0, 2))
    for i, (name, *values) in enumerate(table[1:]):
        if i:
            blocks.add_row()
        blocks.add_row(Text(name, style="bold"))
        for column, value in zip(table[0][1:], values, strict=True):
            blocks.add_row(Text(f"  {column}"), Text(value))
    return blocks


def _drawn(
    heading: Sequence[str], rows: Sequence[Sequence[str]], n_names: int, total: Sequence[str] | None = None
) -> "Table":
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for i, name in enumerate(heading):
        table.add_column(Text(name), justify="left" if i < n_names else "right", no_wrap=True, overflow="ellipsis")
    for row in rows:
        table.add_row(*map(Text, row))
    if total is not None:
        table.add_section()
        table.add_row(*map(Text, total))
    return table


def _width(table: "Table") -> int:
    from rich.console import Console

    unlimited = Console(width=10_000, height=HEIGHT)
    return unlimited.measure(table).maximum
