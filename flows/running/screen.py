"""Tables and errors on the terminal."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from flows.running.stopping import Stopped, stopped_by_signals
from mlfilter_core.errors import MlfilterError

if TYPE_CHECKING:
    from rich.console import Console

LOG_WIDTH = 200


def console() -> "Console":
    """Returns where tables are printed: as wide as the terminal, or wide enough for names and numbers in a log."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=LOG_WIDTH)


@contextmanager
def errors_as_messages() -> Iterator[None]:
    """Turns an expected error of the block into its message and exit status 1, and Ctrl-C into a line and 130."""
    try:
        with stopped_by_signals("stopped"):
            yield
    except Stopped as stopped:
        raise typer.Exit(stopped.status) from None
    except BrokenPipeError:  # as in `| head`: the reader closed the pipe, and typer ends silently
        raise
    except (MlfilterError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from None


def print_table(table: Sequence[Sequence[str]], n_names: int) -> None:
    """Prints rows below the first, which is the heading; all but the first columns are numbers."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=SIMPLE_HEAD)
    for i, name in enumerate(table[0]):
        shown.add_column(name, justify="left" if i < n_names else "right", overflow="fold")
    for row in table[1:]:
        shown.add_row(*map(Text, row))
    console().print(shown)
