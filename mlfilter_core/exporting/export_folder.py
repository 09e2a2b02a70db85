"""All files of a folder of embeddings to a folder of exported files, several at a time."""

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mlfilter_core.compute.cores import usable_cores
from mlfilter_core.compute.isolation import DIED, in_processes, time_limit_s
from mlfilter_core.corpus.parquet_source import PARQUET_SUFFIX
from mlfilter_core.embedding_store.fingerprint import Fingerprint, OneEncoder, fingerprint
from mlfilter_core.embedding_store.layout import EMBEDDING_SUFFIXES
from mlfilter_core.embedding_store.reader import EmbeddingFile
from mlfilter_core.errors import AnnotationError, ConfigError, EmbeddingFileError, FileError, SourceError
from mlfilter_core.exporting.annotated_scores import AnnotatedScores
from mlfilter_core.exporting.columns import EMBEDDING, Column, chosen, columns_of, embedding_bytes
from mlfilter_core.exporting.export_file import REPLACE, ExportReport, export_file, settings_of
from mlfilter_core.exporting.export_request import ExportRequest
from mlfilter_core.files.disk_space import check_room_for
from mlfilter_core.files.publishing import check_writable, publish_json, remove_leftovers
from mlfilter_core.files.task_files import TaskFile, find_files
from mlfilter_core.files.urls import refuse_url
from mlfilter_core.wording import duration, plural, size
from mlfilter_core.work.same_request import differing_fields

FAILED = "failed"
PROGRESS_S = 10.0  # between two lines about the progress

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExportTotals:
    """The result of an export.

    Attributes:
        files: Number of files by status.
        documents: Documents in the finished files.
        n_bytes: Size of the files exported by this run.
        seconds: Wall time.
    """

    files: Counter[str]
    documents: int
    n_bytes: int
    seconds: float

    def summary(self) -> str:
        """Returns the result as a line of text."""
        statuses = ", ".join(f"{n:,} {status}" for status, n in self.files.items())
        speed = f" ({self.n_bytes / 1e6 / self.seconds:,.0f} MB/s)" if self.n_bytes else ""
        return (
            f"{plural(self.files.total(), 'file')}: {statuses}; {plural(self.documents, 'document')}; wrote "
            f"{size(self.n_bytes)} in {duration(self.seconds)}{speed}"
        )


def export(
    request: ExportRequest, n_workers: int | None = None, on_file: Callable[[ExportReport], None] = lambda _: None
) -> ExportTotals:
    """Exports every file of a folder; a file that fails does not stop the others.

    Worker processes import the main module: a script that calls this needs `if __name__ == "__main__":`.

    Args:
        request: The settings.
        n_workers: Processes; None takes one for each core.
        on_file: Called with each report, in the order of the files.

    Raises:
        ConfigError: A folder is missing or cannot be written to, is a URL, or has outputs of other settings; the
            outputs would lie among the inputs; the files have two encoders; a column does not exist.
        OSError: The file system failed. Another call skips the finished files.
    """
    started = time.monotonic()
    _check_folders(request)
    files = find_files(request.embeddings, request.glob_pattern, EMBEDDING_SUFFIXES)
    columns, encoder, needed_bytes = look_at(files, request)
    _check_settings(request, columns, encoder, files)
    check_writable(request.output_dir, "--output_directory")
    check_room_for(request.output_dir, needed_bytes, "--output_directory")
    remove_leftovers(request.output_dir)
    publish_json(request.settings_file, {"settings": settings_of(request, columns), "encoder": dict(encoder)})
    statuses, documents, n_bytes = Counter[str](), 0, 0
    told = started
    for report in _reports(files, request, columns, n_workers or usable_cores()):
        statuses[report.status] += 1
        documents += report.documents
        n_bytes += report.n_bytes if report.status == "exported" else 0
        on_file(report)
        if time.monotonic() - told > PROGRESS_S:
            told = time.monotonic()
            _log.info("%d of %d files, %s written", statuses.total(), len(files), size(n_bytes))
    return ExportTotals(statuses, documents, n_bytes, time.monotonic() - started)


def _check_folders(request: ExportRequest) -> None:
    for option, folder in (
        ("--embeddings", request.embeddings),
        ("--annotated", request.annotated),
        ("--source-dir", request.source_dir),
        ("--output_directory", request.output_dir),
    ):
        try:
            if folder is not None:
                refuse_url(folder)
        except ValueError as error:
            raise ConfigError(f"{option}: {folder} {error}") from error
    others = [each.folder for each in (request.clusters, request.duplicates) if each is not None]
    for folder in filter(None, (request.embeddings, request.annotated, *others)):
        if request.output_dir.resolve().is_relative_to(folder.resolve()):
            raise ConfigError(
                f"--output_directory: {request.output_dir} is in {folder}, whose files are exported; give a folder "
                "outside of it"
            )
    if request.annotated is not None and not request.annotated.is_dir():
        raise ConfigError(f"--annotated: the folder {request.annotated} does not exist; fix the path")


def look_at(files: Sequence[TaskFile], request: ExportRequest) -> tuple[list[Column], Fingerprint, int]:
    """Returns the columns, from the first file with documents, the encoder, and the least bytes to write.

    Files that cannot be read are left to their tasks.

    Raises:
        ConfigError: There are two encoders, or the columns that are asked for do not exist; no file can be read.
    """
    one_encoder, needed_bytes = OneEncoder(), 0
    columns: list[Column] = []
    has_documents = False
    failure = ""
    for file in files:
        try:
            with EmbeddingFile(file.path, request.group) as embeddings:
                one_encoder.check(file.path, fingerprint(embeddings.provenance))
                if not has_documents:
                    own = _columns_of(embeddings, file, request)
                    columns, has_documents = own, embeddings.n_rows > 0
                if not request.table(file).exists():
                    needed_bytes += embeddings.n_chunks * embedding_bytes(columns)
        except (EmbeddingFileError, AnnotationError, SourceError, OSError) as error:
            failure = failure or str(error)
    if not columns:
        raise ConfigError(f"no file can be exported, for example: {failure}")
    if request.format == "npy" and EMBEDDING not in (column.name for column in columns):
        raise ConfigError(
            f'--format npy: --columns leaves out "{EMBEDDING}", which is the array; give --format parquet'
        )
    return columns, one_encoder.fingerprint, needed_bytes


def _columns_of(embeddings: EmbeddingFile, file: TaskFile, request: ExportRequest) -> list[Column]:
    scores = None
    if request.annotated is not None:
        scores = AnnotatedScores(embeddings, file.stem, request.annotated).first()
    return chosen(columns_of(embeddings, scores, request.columns_of_others), request.columns, str(file.path))


def _check_settings(
    request: ExportRequest, columns: Sequence[Column], encoder: Fingerprint, files: Sequence[TaskFile]
) -> None:
    """Compares the settings and the encoder with those that the output folder states.

    Raises:
        ConfigError: They differ and nothing is to be overwritten; or files of another encoder would stay.
    """
    try:
        made: dict[str, Any] = json.loads(request.settings_file.read_bytes())
        settings, other_encoder = made["settings"], made["encoder"]
    except FileNotFoundError:
        return
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{request.settings_file} is broken; give another --output_directory") from error
    problem = ""
    if differing := differing_fields(settings, settings_of(request, columns)):
        problem = f"was exported with other settings: {differing}"
    one_encoder = OneEncoder()
    one_encoder.check(request.output_dir, other_encoder)
    try:
        one_encoder.check(request.embeddings, encoder)
    except ConfigError as error:
        problem = f"has other embeddings: {error}"
    if problem and not request.overwrite:
        raise ConfigError(f"--output_directory: {request.output_dir} {problem}; {REPLACE}")
    outputs = {request.table(file) for file in files}
    stay = [path for path in request.output_dir.rglob(f"*{PARQUET_SUFFIX}") if path not in outputs] if problem else []
    if stay:
        raise ConfigError(
            f"--output_directory: {request.output_dir} {problem}; {stay[0]} would not be replaced: remove it, or give "
            "another folder"
        )


@dataclass(frozen=True)
class _Task:
    """The export of one file, for a worker process."""

    file: TaskFile
    request: ExportRequest
    columns: Sequence[Column]

    def run(self) -> ExportReport:
        try:
            return export_file(self.file, self.request, self.columns)
        except FileError as error:
            return ExportReport(self.file.relative, FAILED, reason=str(error))

    def died(self) -> ExportReport:
        return ExportReport(self.file.relative, FAILED, reason=f"{self.file.path}: {DIED}")


def _reports(
    files: Sequence[TaskFile], request: ExportRequest, columns: Sequence[Column], n_workers: int
) -> Iterator[ExportReport]:
    tasks = ((_Task(file, request, columns), time_limit_s(file.size())) for file in files)
    return in_processes(_Task.run, tasks, min(n_workers, len(files)), _Task.died)
