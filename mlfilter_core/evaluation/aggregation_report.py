"""What became of the documents of an aggregation."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlfilter_core.files.publishing import publish_json
from mlfilter_core.tallies.tally import Tally

REPORT_NAME = "aggregation_report.json"
NO_VALID_SCORE = "no_valid_score"
NOT_ANNOTATED = "not_annotated"
NOT_IN_RAW_FILE = "not_in_raw_file"


@dataclass(frozen=True)
class OutputReport:
    """What became of the documents of one output.

    Attributes:
        output: The file of aggregated scores.
        made_from: The files that its scores are from.
        raw_data_file: The file whose documents it is about; None where that is the annotated file itself.
        documents: In that file; `scored`, `no_valid_score` and `not_annotated` together.
        scored: Lines of the output.
        left_out: Documents without a line: `no_valid_score`, `not_annotated`; and `not_in_raw_file`, annotated ones
            that are no documents of it.
        invalid_draws: By reason.
        duplicates: Documents annotated once more, `with_same_score` or `with_other_score`; the last counts.
        bad_lines: Of the annotated files and of the raw file, by reason.
    """

    output: str
    made_from: tuple[str, ...]
    raw_data_file: str | None
    documents: int
    scored: int
    left_out: Tally
    invalid_draws: Tally
    duplicates: Tally
    bad_lines: Tally

    def row(self) -> dict[str, str | int]:
        """Returns the counts that a person wants to see of every output."""
        return {
            "output": self.output,
            "documents": self.documents,
            "scored": self.scored,
            **{reason: self.left_out.counts[reason] for reason in (NO_VALID_SCORE, NOT_ANNOTATED, NOT_IN_RAW_FILE)},
            "invalid_draws": self.invalid_draws.total,
            "duplicates": self.duplicates.total,
            "bad_lines": self.bad_lines.total,
        }

    def remarks(self) -> list[str]:
        """Returns the reasons behind the counts, each with its first examples."""
        tallies = {
            "left out": self.left_out,
            "invalid draws": self.invalid_draws,
            "annotated more than once, the last counts": self.duplicates,
            "bad lines": self.bad_lines,
        }
        return [f"{self.output}: {title}: {tally}" for title, tally in tallies.items() if tally]

    def to_json(self) -> dict[str, Any]:
        facts = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {name: fact.to_json() if isinstance(fact, Tally) else fact for name, fact in facts.items()}


@dataclass(frozen=True)
class AggregationReport:
    """What became of every output.

    Attributes:
        request: What was asked for, as JSON says it.
        outputs: Those that were written.
        failures: Why a file was not aggregated, by its path.
    """

    request: Mapping[str, Any]
    outputs: list[OutputReport] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Writes `REPORT_NAME` to a folder."""
        facts = {
            "request": self.request,
            "outputs": [output.to_json() for output in self.outputs],
            "failures": self.failures,
        }
        publish_json(folder / REPORT_NAME, facts)
