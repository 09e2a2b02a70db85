"""The report of an output folder, written into that folder."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import orjson

from mlfilter_core.files.new_file import open_new
from mlfilter_core.files.publishing import publish
from mlfilter_core.run_report.collect import FACTS, PAGE, REPORT_DIR, ROWS, collect
from mlfilter_core.run_report.facts import FileFacts, OutputFacts
from mlfilter_core.run_report.file_overview import MAX_TABLE_ROWS, overview_of
from mlfilter_core.run_report.page import render

# Numbers that JSON lacks, such as NaN for the correlation of a constant score, are written as null.
AS_JSON = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE


@dataclass(frozen=True)
class WrittenReport:
    """The page's path and its facts."""

    page: Path
    facts: OutputFacts


def write_report(
    output_dir: Path, logs: Sequence[Path] = (), group: str | None = None, most_opened: int | None = None
) -> WrittenReport:
    """Writes `<output_dir>/report/index.html`, and beside it its facts as `report.json` and all files as `files.jsonl`.

    Args:
        output_dir: Output folder of one or several jobs; they may be running.
        logs: Folders of logs besides `<output_dir>/logs`.
        group: Group of the HDF5 files; None takes the group of the latest job.
        most_opened: As for `collect`.

    Raises:
        ConfigError: There is nothing to report.
        TooManyToOpenError: As `collect`.
        OSError: Writing failed.
    """
    facts = collect(output_dir, logs, group, remembers=True, most_opened=most_opened)
    folder = output_dir / REPORT_DIR
    with publish(folder / ROWS) as temporary, open_new(temporary) as file:

        def written() -> Iterator[FileFacts]:
            for row in facts.files:
                file.write(as_json(row))
                yield row

        overview = overview_of(written())
    if len(facts.files) > MAX_TABLE_ROWS:
        facts = replace(facts, files=overview.shown)
    page = render(facts, overview)
    with publish(folder / FACTS) as temporary, open_new(temporary) as file:
        file.write(as_json(facts))
    with publish(folder / PAGE) as temporary, open_new(temporary) as file:
        file.write(page.encode(errors="replace"))
    return WrittenReport(folder / PAGE, facts)


def shortened(facts: OutputFacts) -> OutputFacts:
    """Returns the facts with the most telling of very many files."""
    return facts if len(facts.files) <= MAX_TABLE_ROWS else replace(facts, files=overview_of(facts.files).shown)


def as_json(facts: object) -> bytes:
    """Returns a dataclass as a JSON object, in one line."""
    return orjson.dumps(facts, option=AS_JSON, default=list)
