"""The commands that look at results: inspect, verify, aggregate-scores, evaluate-predicted-annotations.

Imports nothing heavy, so that `--help` answers at once.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from flows.running.screen import errors_as_messages
from flows.running.tables import print_prose, print_table
from mlfilter_core.errors import ConfigError, MlfilterError
from mlfilter_core.evaluation.aggregation import DEFAULT_BATCH_SIZE
from mlfilter_core.files.urls import refuse_url
from mlfilter_core.wording import plural

MAX_SHOWN_REMARKS = 20

results = typer.Typer()

InputDirectories = Annotated[
    list[Path],
    typer.Option(
        "--input-directory",
        metavar="DIR",
        help="Folder of draw files (annotations_*.jsonl), searched recursively. "
        "With --score-keys: folder of annotated files; repeatable.",
    ),
]
InputDirectory = Annotated[
    Path,
    typer.Option(
        "--input-directory",
        metavar="DIR",
        help="Folder of draw files (annotations_*.jsonl), with a subfolder for each language. "
        "With --score-keys: folder of annotated files.",
    ),
]


def _of_this_machine(folder: Path) -> Path:
    try:
        refuse_url(folder)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    return folder


OutputDirectory = Annotated[
    Path,
    typer.Option("--output-directory", metavar="DIR", help="Folder of the results.", callback=_of_this_machine),
]


@results.command("inspect")
def inspect_command(
    file: Annotated[Path, typer.Argument(help="An HDF5 file of embeddings.", exists=True, dir_okay=False)],
    hdf5_dataset_name: Annotated[str, typer.Option(help="Group inside the file.")] = "train",
) -> None:
    """Show the content and the provenance of a file of embeddings."""
    from mlfilter_core.embedding_store.describe import describe

    with errors_as_messages():
        print(describe(file, hdf5_dataset_name))


@results.command("verify")
def verify_command(
    output_dir: Annotated[Path, typer.Argument(help="The output_dir of a job.")],
    quick: Annotated[bool, typer.Option("--quick", help="Check metadata only; read no content.")] = False,
    source_dir: Annotated[
        Path | None,
        typer.Option(
            help="Current folder of the source files, if they have moved since they were embedded.", metavar="DIR"
        ),
    ] = None,
    hdf5_dataset_name: Annotated[str, typer.Option(help="Group inside each HDF5 file.")] = "train",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes that read files at the same time. Default: one for each core.")
    ] = None,
) -> None:
    """Prove that outputs match their sources: embeddings, rejected lines, heads, annotated and filtered files."""
    from mlfilter_core.verification.discrepancies import FileCheck
    from mlfilter_core.verification.output_kinds import VerifyRequest
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


@results.command("aggregate-scores")
def aggregate_command(
    input_directory: InputDirectories,
    output_directory: OutputDirectory,
    aggregation: Annotated[
        str,
        typer.Option(
            metavar="mean|max|min|majority",
            help="How several draws become one score. majority: the most frequent draw; if several are, their mean.",
        ),
    ],
    labels: Annotated[
        str | None,
        typer.Option(metavar="0,1,2,...", help="Valid values of a draw. Other draws are ignored and counted."),
    ] = None,
    raw_data_lookup_dir: Annotated[
        Path | None,
        typer.Option(
            "--raw-data-lookup-dir",
            metavar="DIR",
            help="Folder of the raw files, for example of deduplicated ones. Default: the paths in the draw files.",
        ),
    ] = None,
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, help="Documents to write at a time.")
    ] = DEFAULT_BATCH_SIZE,
    score_keys: Annotated[
        str | None,
        typer.Option(
            "--score-keys",
            metavar="PATTERN",
            help="Aggregate the scores of several heads instead: fields of annotated files, as 'score_*' or a,b.",
        ),
    ] = None,
) -> None:
    """Aggregate several draws of an annotator, or the scores of several heads, to one score."""
    from mlfilter_core.evaluation.aggregate_scores import aggregate_scores
    from mlfilter_core.evaluation.aggregation import REPORT_NAME, AggregationRequest
    from mlfilter_core.evaluation.draws import Scoring, parse_aggregation
    from mlfilter_core.evaluation.scale import parse_scale
    from mlfilter_core.evaluation.score_fields import ScoreFields

    with errors_as_messages(), progress_on_stderr():
        how = parse_aggregation(aggregation, "--aggregation")
        scale = parse_scale(labels, "--labels") if labels is not None else None
        if score_keys is not None and raw_data_lookup_dir is not None:
            raise ConfigError("--raw-data-lookup-dir goes with draw files, not with --score-keys")
        if score_keys is None and scale is None:
            raise ConfigError("give --labels, such as 0,1,2,3,4,5: a model may also write values that are not labels")
        if score_keys is None and len(input_directory) > 1:
            raise ConfigError("several --input-directory go with --score-keys; aggregate draw files one by one")
        fields = ScoreFields(score_keys) if score_keys is not None else None
        report = aggregate_scores(
            AggregationRequest(
                tuple(input_directory), output_directory, Scoring(how, scale), fields, raw_data_lookup_dir, batch_size
            )
        )
        if report.outputs:
            rows = [output.row() for output in report.outputs]
            print_table([list(rows[0]), *([_cell(value) for value in row.values()] for row in rows)], n_names=1)
        remarks = [remark for output in report.outputs for remark in output.remarks()]
        _print_remarks(remarks, output_directory / REPORT_NAME)
        print(f"results: {output_directory}")
        if report.failures:
            reasons = "\n".join(f"  {reason}" for reason in report.failures.values())
            n_failed = plural(len(report.failures), "file")
            raise MlfilterError(f"{n_failed} failed; the others are aggregated:\n{reasons}")


@results.command("evaluate-predicted-annotations")
def evaluate_command(
    input_directory: InputDirectory,
    output_directory: OutputDirectory,
    path_to_ground_truth_file: Annotated[
        Path,
        typer.Option(
            "--path-to-ground-truth-file",
            metavar="PATH",
            exists=True,
            help="JSONL file or folder of JSONL files, with draws or with any records that have an id and a label.",
        ),
    ],
    valid_labels: Annotated[
        str,
        typer.Option("--valid-labels", metavar="0,1,2,...", help="Valid values of a draw."),
    ],
    aggregation_strategy: Annotated[
        str,
        typer.Option(
            "--aggregation-strategy",
            metavar="mean|max|min|majority",
            help="How several draws become one score.",
        ),
    ] = "majority",
    thresholds: Annotated[
        str | None,
        typer.Option(metavar="2,3,...", help="Lowest positive scores, each for a set of binary measures."),
    ] = None,
    label_key: Annotated[
        str | None,
        typer.Option(
            "--label-key",
            metavar="KEY",
            help="Key of the label in the truth. Default: the list scores, otherwise label, score or scores.score.",
        ),
    ] = None,
    score_keys: Annotated[
        str | None,
        typer.Option(
            "--score-keys",
            metavar="PATTERN",
            help="Evaluate heads instead: their score fields in annotated files, as 'score_*' or a,b.",
        ),
    ] = None,
    bootstrap: Annotated[
        int, typer.Option(min=0, help="Resamples of the documents for the 95 % intervals; 0 leaves them out.")
    ] = 1000,
    seed: Annotated[
        int, typer.Option(min=0, help="Seed of the resamples: the same seed gives the same intervals.")
    ] = 0,
) -> None:
    """Compare the predictions of annotators or heads with true labels, in each language and in all."""
    from mlfilter_core.evaluation.agreement import MeasureOptions
    from mlfilter_core.evaluation.draws import parse_aggregation
    from mlfilter_core.evaluation.evaluate import evaluate
    from mlfilter_core.evaluation.evaluation_report import EvaluationRequest
    from mlfilter_core.evaluation.scale import parse_numbers, parse_scale
    from mlfilter_core.evaluation.score_fields import ScoreFields

    with errors_as_messages(), progress_on_stderr():
        options = MeasureOptions(
            parse_scale(valid_labels, "--valid-labels"),
            tuple(parse_numbers(thresholds, "--thresholds")) if thresholds is not None else (),
            *(bootstrap, seed),
        )
        request = EvaluationRequest(
            *(input_directory, output_directory, path_to_ground_truth_file),
            parse_aggregation(aggregation_strategy, "--aggregation-strategy"),
            *(options, label_key, ScoreFields(score_keys) if score_keys is not None else None),
        )
        report = evaluate(request)
        for line in report.about():
            print_prose(line)
        print_table([[cell.replace(" [", "\n[") for cell in row] for row in report.shown_table()], n_names=2)
        _print_remarks(report.exclusions(), output_directory / "evaluation.md")
        if report.gaps():
            print(f"measures undefined, in some resamples or in all: {output_directory / 'evaluation.md'}")
        print(f"results: {output_directory}")


@contextmanager
def progress_on_stderr() -> Iterator[None]:
    """Shows what the core logs meanwhile; a command of minutes should not be silent."""
    logger, handler = logging.getLogger("mlfilter_core"), logging.StreamHandler()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def _print_remarks(remarks: Sequence[str], file: Path) -> None:
    for remark in remarks[:MAX_SHOWN_REMARKS]:
        print_prose(remark)
    if len(remarks) > MAX_SHOWN_REMARKS:
        print(f"... and {len(remarks) - MAX_SHOWN_REMARKS:,} more remarks in {file}")


def _cell(value: str | int) -> str:
    return f"{value:,}" if isinstance(value, int) else value
