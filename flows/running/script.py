"""The commands that run jobs, as `ml_filter embed` and `python flows/embed.py` take their arguments.

Imports nothing heavy, so that `--help` answers at once. A flow is imported once its job file is read.
"""

import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.running.machine import exhausted, fit_any_machine
from flows.running.start import reporting_to, run_job_file, run_pipeline
from flows.running.stopping import Stopped, stopped_by_signals
from flows.watching.terminal import Verbosity, verbosity
from mlfilter_core.config.job_files import parse_overrides
from mlfilter_core.errors import MlfilterError
from mlfilter_core.job_kinds import JobKind, kind_of_flow, kinds, load_entry_point

if TYPE_CHECKING:
    from flows.running.report import RunReport

STYLE: dict[str, Any] = {
    "add_completion": False,
    "pretty_exceptions_enable": False,
    "rich_markup_mode": None,
    # Commands and options are accepted with underscores, as ML-Filter has them, and with hyphens.
    "context_settings": {"token_normalize_func": lambda name: name.replace("_", "-")},
}

STOPPING = "stopping: finished files are kept, and a rerun continues"

ConfigPath = Annotated[
    Path,
    typer.Option(
        "--config",
        "--config-file-path",
        metavar="FILE",
        help="YAML job file. deployments/ has examples; the documentation lists the fields.",
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="FIELD=VALUE",
        help="Replace one value of the job file, as in --set params.batch_size=128; repeatable.",
    ),
]

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print warnings and errors only.")]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Print all lines of the log, those of Prefect and the workers included.")
]


def run_script(flow: str) -> None:
    """Runs a script of `flows/`, whose name is that of its flow: reads the arguments, then imports the flow.

    The script's process is `__main__`, and so is its copy of the flow. The flow that runs is the one that workers can
    import, `flows.<name>`.
    """
    fit_any_machine()
    hide_script_from_workers()
    script = typer.Typer(**STYLE)
    script.command()(command_of(flow))
    script()


def command_of(flow: str) -> Callable[..., None]:
    """Returns the function of a flow's command; its signature is the options, its docstring the help."""
    kind = kind_of_flow(flow)
    if kind is None:
        return pipeline_command()
    command: Callable[..., None] = load_entry_point(kind.command)(kind)
    return command


def job_command(kind: JobKind) -> Callable[..., None]:
    """Returns the command that runs a job of a kind."""

    def command(config: ConfigPath, set_: Overrides = None, quiet: Quiet = False, verbose: Verbose = False) -> None:
        run_and_print(lambda: run_job_file(kind.flow, config, parse_overrides(set_ or [])), quiet, verbose)

    command.__doc__ = kind.summary
    return command


def pipeline_command() -> Callable[..., None]:
    """Returns the command that runs jobs of several kinds, one after another; each kind has two options."""

    def command(**options: Any) -> None:
        def run() -> None:
            names = [kind.step for kind in kinds() if kind.step and options[f"{kind.step}_config"] is not None]
            run_pipeline(
                {step: (options[f"{step}_config"], parse_overrides(options[f"set_{step}"] or [])) for step in names}
            )

        run_and_print(run, options["quiet"], options["verbose"])

    parameters = [parameter for kind in kinds() for parameter in _step_options(kind)]
    parameters.sort(key=lambda parameter: (parameter.default is not parameter.empty, parameter.name.startswith("set_")))
    parameters += [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=False)
        for name, annotation in (("quiet", Quiet), ("verbose", Verbose))
    ]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    command.__doc__ = "Embed a corpus and score it; cluster it, train heads, deduplicate and filter it where asked to."
    return command


def _step_options(kind: JobKind) -> list[inspect.Parameter]:
    if kind.step is None:
        return []
    step, keyword = kind.step, inspect.Parameter.KEYWORD_ONLY
    path: Any = Path | None if kind.is_optional_step else Path
    default = None if kind.is_optional_step else inspect.Parameter.empty
    about = " Default: the step is left out." if kind.is_optional_step else ""
    config = typer.Option(f"--{step}-config", metavar="FILE", help=f"YAML job file of the {step} step.{about}")
    set_ = typer.Option(
        f"--set-{step}", metavar="FIELD=VALUE", help=f"Replace one value of the {step} job; repeatable."
    )
    return [
        inspect.Parameter(f"{step}_config", keyword, annotation=Annotated[path, config], default=default),
        inspect.Parameter(f"set_{step}", keyword, annotation=Annotated[list[str] | None, set_], default=None),
    ]


def hide_script_from_workers() -> None:
    """Prevents new processes from importing the script of this process again.

    multiprocessing does so, by the name of the script's file, to find what the script defines. The scripts here define
    nothing, and importing them loads Prefect: two seconds for each worker.
    """
    del sys.modules["__main__"].__file__


def run_and_print(run: Callable[[], Any], quiet: bool = False, verbose: bool = False) -> None:
    """Runs jobs and prints the table of each when it ends; an expected error ends in its message and exit status 1.

    Args:
        run: Runs the jobs.
        quiet: Whether to print warnings and errors only.
        verbose: Whether to print all lines of the log.
    """
    if quiet and verbose:
        raise typer.BadParameter("--quiet and --verbose exclude each other")
    printed: list[RunReport] = []

    def show(report: "RunReport") -> None:
        from flows.running.report import print_report

        printed.append(report)
        if not quiet:
            print_report(report)

    token = verbosity.set(Verbosity.QUIET if quiet else Verbosity.VERBOSE if verbose else Verbosity.NORMAL)
    try:
        with stopped_by_signals(STOPPING), reporting_to(show):
            run()
    except Stopped as stopped:
        raise typer.Exit(stopped.status) from None
    except MlfilterError as error:
        report = getattr(error, "report", None)
        if report is not None and not any(report is other for other in printed):
            show(report)
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    except Exception as error:
        if (lack := exhausted(error)) is None:
            raise
        print(f"error: {lack}", file=sys.stderr)
        raise typer.Exit(1) from None
    finally:
        verbosity.reset(token)
