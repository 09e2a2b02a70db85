"""The report of a run: a table for the terminal, artifacts for the Prefect UI, a line on disk for each file."""

import logging
import os
import re
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from flows.prefect_api.server import ApiLostError, is_of_api
from flows.running.overview import FAILED, MAX_ARTIFACT_ROWS, Overview, overview_of
from flows.running.tables import print_files, print_prose
from mlfilter_core.errors import MlfilterError
from mlfilter_core.wording import duration, plural
from mlfilter_core.work import run_log
from mlfilter_core.work.failures import describe_failures
from mlfilter_core.work.workload import SKIPPED, FileReport, row_of

MAX_PRINTED_ROWS = 40
MOST_OPENED = 10_000  # outputs; to open more takes longer than people wait for a run to end: some 4 ms each
NOT_ALL = "the failed ones, those with most rejected lines, and the slowest; files.jsonl, beside the logs, has all"
TEXT_COLUMNS = ("file", "status")
FONTS_VARIABLE = "MPLCONFIGDIR"  # names the folder of matplotlib's font list, which is the home folder by default

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunReport:
    """The results of a run, file by file.

    Attributes:
        flow: Name of the flow: `embed`.
        output_dir: Folder of the outputs.
        logs: Folder of the run's logs.
        seconds: Wall time, the start of the workers included.
        reports: Reports of the finished files, sorted by name.
        failures: Reason of each failure, by the file's name.
        is_step: Whether the flow continues with another round over the files.
        page: HTML report of the job's output folder; None where there is none.
        on_nodes: Remarks on the nodes of the workers.
        known: The overview of the rows, once it is known.
    """

    flow: str
    output_dir: Path
    logs: Path
    seconds: float
    reports: Sequence[FileReport]
    failures: dict[str, str] = field(default_factory=dict)
    is_step: bool = False
    page: Path | None = None
    on_nodes: Sequence[str] = ()
    known: list[Overview] = field(default_factory=list, repr=False, compare=False)

    @property
    def artifacts(self) -> str:
        """Prefix of the keys of the run's artifacts; keys have no underscores."""
        return self.flow.replace("_", "-")

    @property
    def n_files(self) -> int:
        """Number of finished and failed files."""
        return len(self.failures) + len(self.reports)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yields a row for each file, failed files first."""
        for name, reason in self.failures.items():
            yield failed_row(name, reason)
        yield from map(row_of, self.reports)

    @property
    def overview(self) -> Overview:
        """What the rows have in common, and the most telling ones."""
        return self.known[0] if self.known else self._look_over(self.rows())

    def write_rows(self) -> None:
        """Writes `files.jsonl`, a line for each file.

        Raises:
            OSError: It cannot be written.
        """
        with run_log.rows_written(self.logs) as written:
            self._look_over(written(self.rows()))

    def _look_over(self, rows: Iterable[dict[str, Any]]) -> Overview:
        self.known[:] = [overview_of(rows, self.reports[0].SUMMED if self.reports else ())]
        return self.known[0]

    def telling_rows(self, n: int) -> list[dict[str, Any]]:
        """Returns at most `n` rows: all rows, or the failed files, those with most rejected lines, and the slowest.

        Args:
            n: Most rows, at most `MAX_ARTIFACT_ROWS`.
        """
        return self.overview.telling_rows(n)

    def totals(self) -> dict[str, Any]:
        """Returns the sums over the finished files."""
        states, sums = self.overview.states, self.overview.sums
        counts = {"files": len(self.reports), "failed": len(self.failures), "skipped": states[SKIPPED]}
        return {**counts, **sums, "seconds": round(self.seconds, 1)}

    @cached_property
    def remarks(self) -> list[str]:
        """Remarks on the run for a person."""
        on_files = type(self.reports[0]).remarks_on(self.reports) if self.reports else []
        return [*on_files, *self.on_nodes]


class FilesFailedError(MlfilterError):
    """A run ended with failed files; the others are finished."""

    def __init__(self, report: RunReport) -> None:
        self.report = report
        super().__init__(
            f"{len(report.failures)} of {report.n_files} files failed; the others are "
            f"finished, and a rerun does the failed ones only:\n{describe_failures(report.failures, MAX_PRINTED_ROWS)}"
        )


class ReportError(MlfilterError):
    """The list of a run's files cannot be written; the files themselves are finished."""

    def __init__(self, report: RunReport, error: OSError) -> None:
        self.report = report
        failed = "".join(f"\n  {name}: {reason}" for name, reason in list(report.failures.items())[:MAX_PRINTED_ROWS])
        rows = report.logs / run_log.ROWS
        super().__init__(
            f"{rows} cannot be written ({error.strerror or error}); {len(report.reports)} files are "
            f"finished, {len(report.failures)} failed. Make room and run again; finished files are kept" + failed
        )


# Of `keeping_reports`. Prefect loses the result of a flow when its API does not answer.
_keep: ContextVar[Callable[[RunReport], None] | None] = ContextVar("keep report", default=None)


@contextmanager
def keeping_reports(on_report: Callable[[RunReport], None]) -> Iterator[list[RunReport]]:
    """Gives a list to which each run in the block adds its report, even if its flow fails; steps add none.

    Args:
        on_report: Called with each report that is added.
    """
    reports: list[RunReport] = []

    def keep(report: RunReport) -> None:
        reports.append(report)
        on_report(report)

    token = _keep.set(keep)
    try:
        yield reports
    finally:
        _keep.reset(token)


def publish_report(report: RunReport, pictures: Mapping[str, str] = {}, outputs: str = "") -> None:
    """Adds a table and a summary to the Prefect UI, if its API answers.

    Args:
        report: Report of the run.
        pictures: Addresses of images for the summary, by their titles.
        outputs: Markdown about the outputs, for the summary.
    """
    from prefect.artifacts import create_markdown_artifact, create_table_artifact  # takes a second to import

    telling = report.telling_rows(MAX_ARTIFACT_ROWS)
    shown = [{name: row.get(name, "") for name in report.overview.columns} for row in telling]
    about = f"Files of {report.flow}" + (f": {NOT_ALL}" if len(telling) < report.n_files else "")
    try:
        create_table_artifact(shown, key=f"{report.artifacts}-files", description=about)
        create_markdown_artifact(
            _markdown(report, pictures, outputs),
            key=f"{report.artifacts}-summary",
            description=f"What {report.flow} did",
        )
    except Exception as error:
        if not is_of_api(error):
            raise
        _log.warning("the Prefect UI lacks the table and the summary of this run: %s", ApiLostError(error))
    if (keep := _keep.get()) is not None and not report.is_step:
        keep(report)


def write_rows(report: RunReport) -> None:
    """Writes `files.jsonl` to the run's logs, a line for each file.

    Raises:
        ReportError: It cannot be written.
    """
    try:
        report.write_rows()
    except OSError as error:
        raise ReportError(report, error) from error


@dataclass(frozen=True)
class Page:
    """The report of an output folder.

    Attributes:
        path: HTML file; None where it cannot be written.
        pictures: Addresses of images for the Prefect UI, by their titles.
        summary: Markdown about the outputs, for the Prefect UI.
    """

    path: Path | None = None
    pictures: Mapping[str, str] = field(default_factory=dict)
    summary: str = ""


@contextmanager
def page_modules_loading(logging_dir: Path) -> Iterator[None]:
    """Imports what `make_page` needs during the block, in which this process mostly waits for workers."""

    def load() -> None:
        with suppress(Exception):  # `make_page` warns
            import mlfilter_core.run_report.pictures
            import mlfilter_core.run_report.write_report  # noqa: F401

    _keep_fonts_in(logging_dir)
    loading = threading.Thread(target=load, name="page modules")
    loading.start()
    try:
        yield
    finally:
        loading.join()


def make_page(flow: str, output_dir: Path, logging_dir: Path) -> Page:
    """Writes the report of an output folder, unless that takes long, as it is not known what most outputs state.

    If it cannot be written, a warning says so, and the run continues.

    Args:
        flow: Flow whose pictures the Prefect UI shows.
        output_dir: Output folder of the job.
        logging_dir: Folder of the job's logs.
    """
    _keep_fonts_in(logging_dir)
    from mlfilter_core.run_report.pictures import pictures_of, summary_of  # takes a second to import
    from mlfilter_core.run_report.read_outputs import TooManyToOpenError
    from mlfilter_core.run_report.write_report import write_report

    try:
        report = write_report(output_dir, [logging_dir], most_opened=MOST_OPENED)
        return Page(report.page, pictures_of(report.facts, flow), summary_of(report.facts, flow))
    except TooManyToOpenError as error:
        _log.info(
            "the report on %s outputs is not written at the end of a run, as it would open more than %s of them, some "
            "4 ms each; `ml_filter report %s` does, once",
            *(f"{error.of:,}", f"{MOST_OPENED:,}", output_dir),
        )
        return Page()
    except Exception as error:
        _log.warning(
            "the report in %s cannot be written: %s: %s; `ml_filter report %s` tries again",
            *(output_dir, type(error).__name__, error, output_dir),
        )
        return Page()


def _keep_fonts_in(logging_dir: Path) -> None:
    os.environ.setdefault(FONTS_VARIABLE, str(logging_dir.absolute() / "matplotlib"))


def print_report(report: RunReport) -> None:
    """Prints the table of a run and where its results are. The error of a failed run has the reasons."""
    printed = report.reports[0].PRINTED if report.reports else ()
    columns = [name for name in (*TEXT_COLUMNS, *printed) if name in report.overview.columns]
    telling = report.telling_rows(MAX_PRINTED_ROWS)
    total = {"file": "total", **report.totals(), "seconds": ""}  # the title has the time of all, workers in parallel
    lines = [{name: _cell(row.get(name, "")) for name in columns} for row in (*telling, total)]
    spare = "status" if len(report.overview.states) == 1 else None
    print()
    print_files(_title(report), columns, lines, len(TEXT_COLUMNS), spare)
    if len(telling) < report.n_files:
        print_prose(f"{len(telling)} of {report.n_files} files: {NOT_ALL}")
    for remark in report.remarks:
        print_prose(remark)
    print(f"results: {report.output_dir}")
    print(f"logs:    {report.logs}")
    if report.page is not None:
        print(f"report:  {report.page}")
    for line in type(report.reports[0]).sample_of(report.reports) if report.reports else ():
        print(line)
    sys.stdout.flush()


def _title(report: RunReport) -> str:
    """Returns `embed: 4 files embedded in 25.5 s`, or `embed: 4 files in 25.5 s: 1 failed, 3 embedded`."""
    states = report.overview.states
    files, spent = plural(report.n_files, "file"), duration(report.seconds)
    if len(states) == 1:
        return f"{report.flow}: {files} {next(iter(states))} in {spent}"
    return f"{report.flow}: {files} in {spent}: {', '.join(f'{n:,} {state}' for state, n in states.items())}"


def failed_row(name: str, reason: str) -> dict[str, Any]:
    """Returns the row of a file that failed."""
    return {"file": name, "status": FAILED, "reason": reason}


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {count}" for key, count in value.items())
    if value is None:
        return "-"
    return f"{round(value, 3):,}" if isinstance(value, (int, float)) else str(value)


def _markdown(report: RunReport, pictures: Mapping[str, str], outputs: str = "") -> str:
    lines = [f"# {report.flow}", "", "| | |", "| --- | ---: |"]
    lines += [f"| {name} | {_cell(value)} |" for name, value in report.totals().items()]
    lines += ["", *(f"- {remark}" for remark in report.remarks)]
    lines += ["", f"Results in `{report.output_dir}`, logs in `{report.logs}`."]
    if report.page is not None:
        # A page of an http server may not lead to files; the address can be copied.
        lines += ["", f"Report, with pictures and every file: `{report.page}`"]
    if report.failures:
        lines += ["", "## Failed", ""]
        shown = list(report.failures.items())[:MAX_PRINTED_ROWS]
        lines += [f"- `{name}`: {reason}" for name, reason in shown]
    lines += ["", outputs] if outputs else []
    for title, address in pictures.items():
        plain = re.sub(r"([\\`*_\[\]<>!])", r"\\\1", title)  # a head may be called anything
        lines += ["", f"**{plain}**", "", f"![{plain}]({address})"]
    return "\n".join(lines)
