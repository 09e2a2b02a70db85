"""The report of an output folder, written into that folder."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson

from mlfilter_core.files.new_file import open_new
from mlfilter_core.files.publishing import publish
from mlfilter_core.run_report.collect import FACTS, PAGE, REPORT_DIR, collect
from mlfilter_core.run_report.facts import OutputFacts
from mlfilter_core.run_report.page import render

# Numbers that JSON lacks, such as NaN for the correlation of a constant score, are written as null.
AS_JSON = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE


@dataclass(frozen=True)
class WrittenReport:
    """The page's path and its facts."""

    page: Path
    facts: OutputFacts


def write_report(output_dir: Path, logs: Sequence[Path] = (), group: str | None = None) -> WrittenReport:
    """Writes `<output_dir>/report/index.html`, and its facts as `report.json` beside it.

    Args:
        output_dir: Output folder of one or several jobs; they may be running.
        logs: Folders of logs besides `<output_dir>/logs`.
        group: Group of the HDF5 files; None takes the group of the latest job.

    Raises:
        ConfigError: There is nothing to report.
        OSError: Writing failed.
    """
    facts = collect(output_dir, logs, group)
    folder = output_dir / REPORT_DIR
    page = render(facts)
    with publish(folder / FACTS) as temporary, open_new(temporary) as file:
        file.write(as_json(facts))
    with publish(folder / PAGE) as temporary, open_new(temporary) as file:
        file.write(page.encode(errors="replace"))
    return WrittenReport(folder / PAGE, facts)


def as_json(facts: object) -> bytes:
    """Returns a dataclass as a JSON object, in one line."""
    return orjson.dumps(facts, option=AS_JSON)
