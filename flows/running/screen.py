"""Expected errors of a command as messages on the terminal."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from flows.running.stopping import Stopped, stopped_by_signals
from mlfilter_core.errors import MlfilterError


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
