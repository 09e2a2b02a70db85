"""The command that gives embeddings and scores to other tools: export.

Imports nothing heavy, so that `--help` answers at once.
"""

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.commands.results import OutputDirectory, progress_on_stderr
from flows.running.screen import errors_as_messages

if TYPE_CHECKING:
    from mlfilter_core.exporting.export_file import ExportReport

exports = typer.Typer()


class Format(StrEnum):
    """Format of the exported embeddings."""

    parquet = "parquet"
    npy = "npy"


@exports.command("export")
def export_command(
    embeddings: Annotated[
        Path, typer.Option("--embeddings", metavar="DIR", help="Folder of HDF5 files of embeddings.", file_okay=False)
    ],
    output_directory: OutputDirectory,
    annotated: Annotated[
        Path | None,
        typer.Option("--annotated", metavar="DIR", help="Folder of the annotated files made from them, for scores."),
    ] = None,
    clusters: Annotated[
        Path | None,
        typer.Option("--clusters", metavar="DIR", help="Folder of the files of clusters made from them, for topics."),
    ] = None,
    centroids: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="File of the centroids of these clusters. Default: clusters.safetensors beside the folder clusters.",
        ),
    ] = None,
    duplicates: Annotated[
        Path | None,
        typer.Option(
            "--duplicates", metavar="DIR", help="Folder duplicates of a deduplication job, for what duplicates what."
        ),
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,...",
            help="Columns in their order, or patterns: 'document_id,language,score_*,embedding'. "
            "text_beginning, only by its name: 200 characters. Default: document_id, scores, clusters, duplicates, "
            "embedding.",
        ),
    ] = None,
    source_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Current folder of the source files, for text_beginning, if they have moved since they were embedded.",
        ),
    ] = None,
    format_: Annotated[
        Format,
        typer.Option(
            "--format",
            metavar="parquet|npy",
            help="npy: embeddings as an array, x.npy, and the other columns as x.parquet.",
        ),
    ] = Format.parquet,
    glob_pattern: Annotated[str, typer.Option(metavar="GLOB", help="Files to export, below --embeddings.")] = "**/*",
    hdf5_dataset_name: Annotated[str, typer.Option(help="Group inside each HDF5 file.")] = "train",
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Processes that export files at the same time. Default: one for each core."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace outputs of other settings or inputs.")
    ] = False,
) -> None:
    """Write embeddings, ids, scores, clusters and duplicates as Parquet or NumPy files, one for each HDF5 file."""
    from mlfilter_core.embedding_store.centroids import centroids_beside
    from mlfilter_core.embedding_store.clusters_of_rows import find_clusters
    from mlfilter_core.errors import MlfilterError
    from mlfilter_core.exporting.duplicates_of_rows import find_duplicates
    from mlfilter_core.exporting.export_folder import FAILED, export
    from mlfilter_core.exporting.export_request import ExportRequest
    from mlfilter_core.wording import plural

    def print_failure(report: "ExportReport") -> None:
        if report.reason:
            print(f"failed: {report.reason}", file=sys.stderr, flush=True)

    with errors_as_messages(), progress_on_stderr():
        patterns = tuple(filter(None, map(str.strip, columns.split(",")))) if columns is not None else None
        request = ExportRequest(
            *(embeddings, output_directory, annotated, patterns, format_.value),
            *(hdf5_dataset_name, glob_pattern, overwrite),
            find_clusters(clusters, centroids or centroids_beside(clusters)) if clusters is not None else None,
            find_duplicates(duplicates) if duplicates is not None else None,
            source_dir,
        )
        totals = export(request, workers, print_failure)
        print(totals.summary())
        print(f"results: {output_directory}")
        if totals.files[FAILED]:
            raise MlfilterError(f"{plural(totals.files[FAILED], 'file')} failed; the others are exported")
