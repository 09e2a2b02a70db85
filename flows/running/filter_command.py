"""The filter command, which runs a filter job or previews other limits."""

from collections.abc import Callable, Sequence
from typing import Annotated

import typer

from flows.running.script import ConfigPath, Overrides, Quiet, Verbose, run_and_print
from flows.running.start import reporting_to, run_job
from flows.running.tables import print_prose, print_table
from mlfilter_core.config.filtering import Bound, FilterJob
from mlfilter_core.config.job_files import parse_overrides
from mlfilter_core.job_kinds import JobKind, load_job_of_kind


def filter_command(kind: JobKind) -> Callable[..., None]:
    """Returns the filter command, which with `--dry-run` only shows what would be kept."""

    def command(
        config: ConfigPath,
        set_: Overrides = None,
        quiet: Quiet = False,
        verbose: Verbose = False,
        dry_run: Annotated[
            bool, typer.Option("--dry-run", help="Show what would be kept, also with other limits; write no document.")
        ] = False,
        percentiles: Annotated[
            str, typer.Option(metavar="50,70,...", help="Percentiles to show, with --dry-run.")
        ] = "50,60,70,80,90,95,99",
        thresholds: Annotated[str, typer.Option(metavar="2,3,...", help="Thresholds to show, with --dry-run.")] = "",
    ) -> None:
        def run() -> None:
            bounds = _bounds(percentiles, thresholds) if dry_run else []
            job = load_job_of_kind(config, kind, parse_overrides(set_ or []))
            assert isinstance(job, FilterJob), "the class of its kind"
            if not dry_run:
                run_job(job)
                return
            with reporting_to(lambda report: None):
                run_job(job, dry_run=True)
            _preview(job, bounds)

        run_and_print(run, quiet, verbose)

    command.__doc__ = kind.summary
    return command


def _bounds(percentiles: str, thresholds: str) -> list[Bound]:
    from mlfilter_core.evaluation.scale import parse_numbers
    from mlfilter_core.filtering.preview import bounds_of

    return bounds_of(
        parse_numbers(percentiles, "--percentiles") if percentiles else [],
        parse_numbers(thresholds, "--thresholds") if thresholds else [],
    )


def _preview(job: FilterJob, bounds: Sequence[Bound]) -> None:
    """Prints what the job keeps, then what each of the other limits would keep."""
    from mlfilter_core.filtering.preview import preview
    from mlfilter_core.filtering.work import surveys_of

    kept = preview(job.params.keep, bounds, surveys_of(job.params))
    heading = ["score", "limit", "documents", "of all", "tokens", "of all"]
    print_table([heading, *(row.cells() for row in kept)], n_names=2)
    for note in kept[0].notes:
        print_prose(note)
