"""The report of an output folder, written beside the outputs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson

from mlfilter_core.files.new_file import open_new
from mlfilter_core.files.publishing import publish
from mlfilter_core.run_report.collect import FACTS, PAGE, REPORT_DIR, collect
from mlfilter_core.run_report.facts import OutputFacts
from mlfilter_core.run_report.page import render

# Numbers that JSON has no word for, such as the correlation of a score that never changes, are written as null.
AS_JSON = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE


@dataclass(frozen=True)
class WrittenReport:
    """The page, and what it says."""

    page: Path
    facts: OutputFacts


def write_report(output_dir: Path, logs: Sequence[Path] = (), group: str | None = None) -> WrittenReport:
    """Writes `<output_dir>/report/index.html`, and the same facts as `report.json` beside it.

    Args:
        output_dir: Of one or several jobs; they may still go on.
        logs: Folders of logs besides `<output_dir>/logs`.
        group: Of the HDF5 files; None takes that of the latest job.

    Raises:
        ConfigError: There is nothing to report of.
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
