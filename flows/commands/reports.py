"""The commands that show runs: report, compare.

Imports nothing heavy, so that `--help` answers at once.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.running.screen import errors_as_messages
from flows.running.tables import print_table
from mlfilter_core.wording import number

if TYPE_CHECKING:
    from mlfilter_core.run_report.folder_comparison import Comparison

reports = typer.Typer()

Folder = typer.Argument(help="The output_dir of a job, or of several.", metavar="OUTPUT_DIR")


@reports.command("report")
def report_command(
    output_dir: Annotated[Path, Folder],
    logging_dir: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR", help="Folder of logs, if a job set a logging_dir other than <output_dir>/logs; repeatable."
        ),
    ] = None,
    hdf5_dataset_name: Annotated[
        str | None, typer.Option(help="Group inside each HDF5 file. Default: that of the latest job.")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print the facts; write nothing.")] = False,
) -> None:
    """Write a report of finished and active runs to <output_dir>/report, as a page for a browser."""
    from mlfilter_core.run_report.collect import collect
    from mlfilter_core.run_report.write_report import as_json, shortened, write_report

    with errors_as_messages():
        if json_:
            sys.stdout.buffer.write(as_json(shortened(collect(output_dir, logging_dir or [], hdf5_dataset_name))))
        else:
            print(write_report(output_dir, logging_dir or [], hdf5_dataset_name).page)


@reports.command("compare")
def compare_command(
    run_a: Annotated[Path, typer.Argument(help="The output_dir of a job, or of several.", metavar="RUN_A")],
    run_b: Annotated[Path, typer.Argument(help="Another.", metavar="RUN_B")],
    thresholds: Annotated[
        str | None,
        typer.Option(metavar="2,3,...", help="Lowest scores to keep: show on how many documents both sides agree."),
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare two output folders: counts, speed, changes of the scores, agreement on documents."""
    from mlfilter_core.evaluation.scale import parse_numbers
    from mlfilter_core.run_report.folder_comparison import compare
    from mlfilter_core.run_report.write_report import as_json

    with errors_as_messages():
        asked = tuple(parse_numbers(thresholds, "--thresholds")) if thresholds is not None else ()
        comparison = compare(run_a, run_b, asked)
        if json_:
            sys.stdout.buffer.write(as_json(comparison))
        else:
            _print(comparison)


def _print(comparison: "Comparison") -> None:
    one, other = comparison.sides
    print(f"A: {one.output_dir}\nB: {other.output_dir}")
    for letter, side in zip("AB", comparison.sides, strict=True):
        for notice in side.notices:
            print(f"note on {letter}: {notice}")
    rows = [[name, *_pair(one.counts[name], other.counts[name])] for name in one.counts]
    for flow in dict.fromkeys([*one.speeds, *other.speeds]):
        speeds = [side.speeds.get(flow, {}) for side in comparison.sides]
        rows += [[f"{flow}: {name}", *_pair(*(own.get(name) for own in speeds))] for name in {**speeds[0], **speeds[1]}]
    print_table([["", "A", "B", "B / A"], *rows], n_names=1)
    if comparison.have_same_clusters is not None:
        are_same = comparison.have_same_clusters
        print(f"clusters: {'the same on both sides' if are_same else 'found separately, with other centres'}")
    if comparison.have_same_duplicates is not None:
        are_same = comparison.have_same_duplicates
        print(
            f"duplicates: {'the same on both sides' if are_same else 'found separately, other documents on each side'}"
        )
    if comparison.shifts:
        heading = [
            "score",
            "",
            "documents",
            "mean",
            "std. dev.",
            *(f"{float(q):.0%}" for q in comparison.shifts[0].quantiles),
        ]
        lines = [
            [shift.name if letter == "A" else "", letter, f"{shift.documents[i]:,}"]
            + [number(pair[i]) for pair in (shift.means, shift.deviations, *shift.quantiles.values())]
            for shift in comparison.shifts
            for i, letter in enumerate("AB")
        ]
        print_table([heading, *lines], n_names=2)
    for letter, names in zip("AB", comparison.only_in, strict=True):
        if names:
            print(f"scores of {letter} alone: {', '.join(names)}")
    _print_agreements(comparison)


def _print_agreements(comparison: "Comparison") -> None:
    if not comparison.shifts:
        print("no score exists on both sides: nothing more to compare")
        return
    if not comparison.agreements:
        print("no document exists on both sides: files are joined by their names, documents by their ids")
        return
    first = comparison.agreements[0]
    heading = ["score", "documents", "Pearson", "Spearman", "mean B - A", "mean |B - A|", "max |B - A|"]
    heading += [f"top {float(share):.0%} shared" for share in first.top]
    heading += [f"agree at {threshold} (A, B keep)" for threshold in first.agreement]
    lines = []
    for row in comparison.agreements:
        line = [
            row.name,
            f"{row.documents:,}",
            number(row.pearson),
            number(row.spearman),
            number(row.mean_difference),
        ]
        line += [number(row.mean_absolute_difference), number(row.largest_difference)]
        line += [f"{share:.1%}" for share in row.top.values()]
        for threshold, agreed in row.agreement.items():
            kept = row.kept[threshold]
            line.append(f"{agreed:.1%} ({kept[0]:.1%}, {kept[1]:.1%})")
        lines.append(line)
    print_table([heading, *lines], n_names=1)
    about = f"document by document: {comparison.paired_files:,} files of the same name"
    if comparison.left_out_files:
        about += f", {comparison.left_out_files:,} more left out, as enough documents were compared"
    if comparison.without_partner:
        about += f"; {comparison.without_partner:,} documents exist on one side only"
    print(about)


def _pair(one: float | None, other: float | None) -> list[str]:
    ratio = f"{other / one:.2f}" if one and other is not None else "-"
    return [number(one), number(other), ratio]
