"""The commands of `ml_filter`: those that run jobs, made from the table of job kinds, and those about jobs.

Imports nothing heavy, so that `--help` answers at once.
"""

from collections.abc import Callable
from typing import Annotated

import typer

from flows.commands.export import exports
from flows.commands.reports import reports
from flows.commands.results import results
from flows.running.machine import fit_any_machine
from flows.running.script import STYLE, ConfigPath, Overrides, command_of, run_and_print
from mlfilter_core.config.job_files import parse_overrides
from mlfilter_core.job_kinds import kinds, load_any_job
from mlfilter_core.versions import library_versions

PIPELINE, OLD_PIPELINE = "pipeline", "run_pipelines"


def build_app() -> typer.Typer:
    """Returns all commands; names are accepted with hyphens and with underscores."""
    app = typer.Typer(
        no_args_is_help=True,
        help="Embed large corpora of web text, score the embeddings, filter by the scores.",
        **STYLE,
    )
    app.callback(invoke_without_command=True)(_about)  # --version needs no command
    for kind in kinds():
        _add(app, kind.command_name, kind.old_command, command_of(kind.flow))
    _add(app, PIPELINE, OLD_PIPELINE, command_of(PIPELINE))
    app.command("plan")(plan_command)
    app.command("job-script")(job_script_command)
    app.add_typer(results)  # without a name, so that its commands are added to those of this module
    app.add_typer(reports)
    app.add_typer(exports)
    return app


def main() -> None:
    """Entry point of `ml_filter`."""
    fit_any_machine()
    build_app()()


def _add(app: typer.Typer, name: str, old_name: str | None, command: Callable[..., None]) -> None:
    app.command(name)(command)
    if old_name is not None:
        app.command(old_name.replace("_", "-"), hidden=True)(command)


def _about(
    version: Annotated[bool, typer.Option("--version", is_eager=True, help="Show the version.")] = False,
) -> None:
    if version:
        print(f"mlfilter {library_versions()['mlfilter']}")
        raise typer.Exit


def plan_command(
    config: ConfigPath,
    set_: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all the facts as JSON.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the sample: the same seed draws the same documents.")] = 0,
) -> None:
    """Show what a job would do and need, and every problem with it, before it starts."""

    def show() -> None:
        from flows.commands.plan import plan_job
        from flows.commands.plan_screen import print_plan

        plan = plan_job(config, parse_overrides(set_ or []), seed)
        print_plan(plan, str(config), as_json)
        if plan.problems:
            raise typer.Exit(1)

    run_and_print(show)


def job_script_command(config: ConfigPath, set_: Overrides = None) -> None:
    """Show the script of the Slurm jobs that a job file asks for, and submit nothing."""

    def show() -> None:
        from flows.workers.slurm import job_script

        job = load_any_job(config, parse_overrides(set_ or []))
        print(job_script(job.slurm, job.one_per_core, job.device, job.logging_dir / "NAME-OF-THE-RUN"))

    run_and_print(show)
