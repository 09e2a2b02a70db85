"""The commands that look at results.

Imports nothing heavy, so that `--help` answers at once.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from mlfilter_core.errors import MlfilterError

results = typer.Typer()


@results.command("inspect")
def inspect_command(
    file: Annotated[Path, typer.Argument(help="An HDF5 file of embeddings.", exists=True, dir_okay=False)],
    hdf5_dataset_name: Annotated[str, typer.Option(help="Group inside the file.")] = "train",
) -> None:
    """Show what a file of embeddings holds, and where it comes from."""
    from mlfilter_core.describe import describe

    with errors_as_messages():
        print(describe(file, hdf5_dataset_name))


@results.command("verify")
def verify_command(
    output_dir: Annotated[Path, typer.Argument(help="The output_dir of a job.")],
    quick: Annotated[bool, typer.Option("--quick", help="Check metadata alone; read no content.")] = False,
    source_dir: Annotated[
        Path | None,
        typer.Option(help="Folder of the source files now, if not where they were embedded from.", metavar="DIR"),
    ] = None,
    hdf5_dataset_name: Annotated[str, typer.Option(help="Group inside each HDF5 file.")] = "train",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes that read files at the same time. Default: one for each core.")
    ] = None,
) -> None:
    """Prove that outputs add up: source lines, embeddings, rejected and annotated lines."""
    from mlfilter_core.verification.embeddings import VerifyRequest
    from mlfilter_core.verification.findings import FileCheck
    from mlfilter_core.verification.verify import verify

    def print_problems(check: FileCheck) -> None:
        for problem in check.problems:
            print(f"{check.path}: {problem}", flush=True)

    with errors_as_messages():
        request = VerifyRequest(output_dir, hdf5_dataset_name, source_dir, read_content=not quick)
        verification = verify(request, workers, print_problems)
        print(verification.summary())
        if not verification.is_right:
            raise typer.Exit(1)


@contextmanager
def errors_as_messages() -> Iterator[None]:
    """Makes an expected error of the block its message and exit status 1."""
    try:
        yield
    except (MlfilterError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
