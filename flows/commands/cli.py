"""The commands: `ml_filter ...`, and `python flows/embed.py` and its kin.

Imports nothing heavy, so that `--help` answers at once.
"""

import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer

from flows.commands.reports import reports
from flows.commands.results import print_table, results
from flows.commands.run import (
    run_annotation_pipeline,
    run_embedding_pipeline,
    run_filter,
    run_head_training,
    run_pipelines,
)
from mlfilter_core.config.job_files import load_job, parse_overrides
from mlfilter_core.errors import MlfilterError
from mlfilter_core.job_kinds import load_any_job

if TYPE_CHECKING:
    from flows.running.report import RunReport

N_SHOWN_DOCUMENTS = 3
N_SHOWN_CHARACTERS = 60

STYLE: dict[str, Any] = {"add_completion": False, "pretty_exceptions_enable": False, "rich_markup_mode": None}
app = typer.Typer(no_args_is_help=True, help="Embed large JSONL corpora, and score the embeddings.", **STYLE)
app.add_typer(results)  # without a name of its own, its commands stand beside those of this module
app.add_typer(reports)

ConfigPath = Annotated[
    Path,
    typer.Option(
        "--config",
        "--config_file_path",
        "--config-file-path",
        metavar="FILE",
        help="YAML job file. deployments/ holds examples, README.md lists the fields.",
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


@app.command("run_embedding_pipeline")
def embedding_command(config: ConfigPath, set_: Overrides = None) -> None:
    """Embed a corpus: one HDF5 file for each JSONL file."""
    _run(lambda: [run_embedding_pipeline(config, parse_overrides(set_ or []))])


@app.command("run_annotation_pipeline")
def annotation_command(config: ConfigPath, set_: Overrides = None) -> None:
    """Score embeddings: one annotated JSONL file for each HDF5 file."""
    _run(lambda: [run_annotation_pipeline(config, parse_overrides(set_ or []))])


@app.command("train_head")
def train_command(config: ConfigPath, set_: Overrides = None) -> None:
    """Train heads on labelled embeddings: one safetensors file for each."""
    _run(lambda: [run_head_training(config, parse_overrides(set_ or []))])


@app.command("filter")
def filter_command(
    config: ConfigPath,
    set_: Overrides = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be kept, also with other limits; write no document.")
    ] = False,
    percentiles: Annotated[
        str, typer.Option(metavar="50,70,...", help="Percentiles to show, with --dry-run.")
    ] = "50,60,70,80,90,95,99",
    thresholds: Annotated[str, typer.Option(metavar="2,3,...", help="Thresholds to show, with --dry-run.")] = "",
) -> None:
    """Keep the best documents of annotated files: one file of documents for each."""
    from mlfilter_core.config.filtering import FilterJob
    from mlfilter_core.evaluation.scale import parse_numbers
    from mlfilter_core.filtering.preview import bounds_of, preview
    from mlfilter_core.filtering.work import surveys_of

    if not dry_run:
        _run(lambda: [run_filter(config, parse_overrides(set_ or []))])
        return

    def show() -> list["RunReport"]:
        bounds = bounds_of(
            parse_numbers(percentiles, "--percentiles") if percentiles else [],
            parse_numbers(thresholds, "--thresholds") if thresholds else [],
        )
        overrides = parse_overrides(set_ or [])
        run_filter(config, overrides, dry_run=True)
        params = load_job(config, FilterJob, overrides).params
        kept = preview(params.keep, bounds, surveys_of(params))
        heading = ["score", "limit", "documents", "of all", "tokens", "of all"]
        print_table([heading, *(row.cells() for row in kept)], n_names=2)
        return []

    _run(show)


@app.command("run_pipelines")
def pipelines_command(
    embed_config: Annotated[
        Path, typer.Option("--embed-config", metavar="FILE", help="YAML job file of the embedding pipeline.")
    ],
    annotate_config: Annotated[
        Path, typer.Option("--annotate-config", metavar="FILE", help="YAML job file of the annotation pipeline.")
    ],
    train_config: Annotated[
        Path | None,
        typer.Option(
            "--train-config", metavar="FILE", help="YAML job file of heads to train in between. Default: none."
        ),
    ] = None,
    filter_config: Annotated[
        Path | None,
        typer.Option(
            "--filter-config", metavar="FILE", help="YAML job file of the filter. Default: nothing is filtered."
        ),
    ] = None,
    set_embed: Annotated[
        list[str] | None,
        typer.Option("--set-embed", metavar="FIELD=VALUE", help="Replace one value of the embedding job; repeatable."),
    ] = None,
    set_annotate: Annotated[
        list[str] | None,
        typer.Option(
            "--set-annotate", metavar="FIELD=VALUE", help="Replace one value of the annotation job; repeatable."
        ),
    ] = None,
    set_train: Annotated[
        list[str] | None,
        typer.Option("--set-train", metavar="FIELD=VALUE", help="Replace one value of the training job; repeatable."),
    ] = None,
    set_filter: Annotated[
        list[str] | None,
        typer.Option("--set-filter", metavar="FIELD=VALUE", help="Replace one value of the filter job; repeatable."),
    ] = None,
) -> None:
    """Embed a corpus, train heads on its labels if asked to, score it, then filter it if asked to."""
    _run(
        lambda: run_pipelines(
            embed_config,
            annotate_config,
            train_config,
            filter_config,
            embed_overrides=parse_overrides(set_embed or []),
            annotate_overrides=parse_overrides(set_annotate or []),
            train_overrides=parse_overrides(set_train or []),
            filter_overrides=parse_overrides(set_filter or []),
        )
    )


@app.command("plan")
def plan_command(
    config: ConfigPath,
    set_: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all the facts as JSON.")] = False,
    seed: Annotated[int, typer.Option(help="Of the documents that are drawn: the same draws the same.")] = 0,
) -> None:
    """Say what a job would do and need, and all that is wrong with it, before it starts."""

    def show() -> list["RunReport"]:
        from flows.commands.plan import plan_job
        from flows.commands.plan_screen import print_plan

        plan = plan_job(config, parse_overrides(set_ or []), seed)
        print_plan(plan, str(config), as_json)
        if plan.problems:
            raise typer.Exit(1)
        return []

    _run(show)


@app.command("job-script")
def job_script_command(config: ConfigPath, set_: Overrides = None) -> None:
    """Show the script of the Slurm jobs that a job file asks for, and submit nothing."""

    def show() -> list["RunReport"]:
        from flows.workers.slurm import job_script

        job = load_any_job(config, parse_overrides(set_ or []))
        print(job_script(job.slurm, job.one_per_core, job.device, job.logging_dir / "NAME-OF-THE-RUN"))
        return []

    _run(show)


def main() -> None:
    """Entry point of `ml_filter`."""
    app()


def embed_script() -> None:
    """Entry point of `python flows/embed.py`."""
    _script(embedding_command)


def annotate_script() -> None:
    """Entry point of `python flows/annotate.py`."""
    _script(annotation_command)


def train_script() -> None:
    """Entry point of `python flows/train_head.py`."""
    _script(train_command)


def filter_script() -> None:
    """Entry point of `python flows/filter.py`."""
    _script(filter_command)


def pipeline_script() -> None:
    """Entry point of `python flows/pipeline.py`."""
    _script(pipelines_command)


def hide_script_from_workers() -> None:
    """Keeps processes that are started from importing this process's script once more, to find what it defines.

    The scripts here define nothing, and would bring Prefect along: two seconds for each worker. multiprocessing goes by
    the name of the script's file.
    """
    del sys.modules["__main__"].__file__


def _script(command: Callable[..., None]) -> None:
    hide_script_from_workers()
    script = typer.Typer(**STYLE)
    script.command()(command)
    script()


def _run(run: Callable[[], list["RunReport"]]) -> None:
    """Runs a pipeline and prints its tables; an expected error is its message and exit status 1."""
    try:
        reports = run()
    except MlfilterError as error:
        report = getattr(error, "report", None)
        if report is not None:
            _print(report)
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    for report in reports:
        _print(report)


def _print(report: "RunReport") -> None:
    from flows.running.report import print_report

    print_report(report)
    if report.flow == "annotate" and report.reports:
        from mlfilter_core.corpus.lines import Line, SourceReader

        first = report.reports[0].output
        with SourceReader(Path(first)) as reader:
            print(f"first documents of {first}:")
            for line in islice(reader.lines(1 << 20), N_SHOWN_DOCUMENTS):
                if isinstance(line, Line):
                    print(f"  {_shortened(line.content)}")


def _shortened(record: bytes) -> str:
    """Returns a JSON record with long strings cut, so that it fits a terminal's line or two."""
    values = orjson.loads(record).items()
    cut = {
        k: f"{v[:N_SHOWN_CHARACTERS]}..." if isinstance(v, str) and len(v) > N_SHOWN_CHARACTERS else v
        for k, v in values
    }
    return orjson.dumps(cut).decode()
