"""The request of an aggregation of scores, and its counts of documents."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlfilter_core.evaluation.draws import Scoring
from mlfilter_core.evaluation.score_fields import ScoreFields
from mlfilter_core.files.publishing import publish_json
from mlfilter_core.tallies.tally import Tally

DEFAULT_BATCH_SIZE = 100_000
REPORT_NAME = "aggregation_report.json"
NO_VALID_SCORE = "no_valid_score"
NOT_ANNOTATED = "not_annotated"
NOT_IN_RAW_FILE = "not_in_raw_file"

# Key and value of a document's id, and its score; None where no draw is valid.
ScoredDocument = tuple[str, Any, float | None]


@dataclass(frozen=True)
class AggregationRequest:
    """What to aggregate, and how.

    Attributes:
        input_directories: One folder of draw files; with `score_fields`, folders of annotated files.
        output_directory: Folder for the outputs and the report.
        scoring: Aggregation of draws, or of the scores of heads, to one score.
        score_fields: Fields of annotated files to aggregate; None aggregates draws.
        raw_data_lookup_dir: Folder with the raw files, by name; None takes the paths in the draw files.
        batch_size: Number of documents to write at a time.
    """

    input_directories: tuple[Path, ...]
    output_directory: Path
    scoring: Scoring
    score_fields: ScoreFields | None = None
    raw_data_lookup_dir: Path | None = None
    batch_size: int = DEFAULT_BATCH_SIZE

    def to_json(self) -> dict[str, Any]:
        folders, lookup = [str(folder) for folder in self.input_directories], self.raw_data_lookup_dir
        scale = self.scoring.scale
        facts = {"aggregation": self.scoring.aggregation, "labels": scale.labels if scale else None}
        if self.score_fields is None:
            return {"input_directory": folders[0], **facts, "raw_data_lookup_dir": str(lookup) if lookup else None}
        return {"input_directory": folders, "score_keys": self.score_fields.written, **facts}


@dataclass
class Output:
    """One file of aggregated scores. The counts grow while its documents are read and written.

    Attributes:
        name: Path below the output folder.
        made_from: Files with the draws or scores.
        raw_data_file: File with the documents; None where the files of `made_from` contain them.
        scored: Number of lines written.
        left_out: Documents without a line, by reason: `no_valid_score`; `not_annotated` without draws;
            `not_in_raw_file` with draws, but not in the raw file.
        invalid_draws: Draws that were ignored, by reason.
        duplicates: Documents with draws in several records, `with_same_score` or `with_other_score`; the last counts.
        bad_lines: Lines of the input files without a usable record, by reason.
    """

    name: str
    made_from: tuple[Path, ...]
    raw_data_file: Path | None = None
    scored: int = 0
    left_out: Tally = field(default_factory=Tally)
    invalid_draws: Tally = field(default_factory=Tally)
    duplicates: Tally = field(default_factory=Tally)
    bad_lines: Tally = field(default_factory=Tally)

    @property
    def documents(self) -> int:
        """Number of documents in the raw file, or else in the annotated files."""
        return self.scored + self.left_out.counts[NO_VALID_SCORE] + self.left_out.counts[NOT_ANNOTATED]

    @property
    def failure_key(self) -> str:
        """Name of the output among the failures."""
        return self.name if self.raw_data_file else " + ".join(map(str, self.made_from))

    def row(self) -> dict[str, str | int]:
        """Returns the counts for the terminal."""
        return {
            "output": self.name,
            "documents": self.documents,
            "scored": self.scored,
            **{reason: self.left_out.counts[reason] for reason in (NO_VALID_SCORE, NOT_ANNOTATED, NOT_IN_RAW_FILE)},
            **{name: tally.total for name, tally in self._tallies().items() if name != "left_out"},
        }

    def remarks(self) -> list[str]:
        """Returns the reasons for the counts, with examples."""
        titles = {name: name.replace("_", " ") for name in self._tallies()}
        titles["duplicates"] = "draws in several records, the last one counts"
        return [f"{self.name}: {titles[name]}: {tally}" for name, tally in self._tallies().items() if tally]

    def to_json(self) -> dict[str, Any]:
        return {
            "output": self.name,
            "made_from": [str(path) for path in self.made_from],
            "raw_data_file": str(self.raw_data_file) if self.raw_data_file else None,
            "documents": self.documents,
            "scored": self.scored,
            **{name: tally.to_json() for name, tally in self._tallies().items()},
        }

    def _tallies(self) -> dict[str, Tally]:
        return {name: fact for name, fact in vars(self).items() if isinstance(fact, Tally)}


@dataclass(frozen=True)
class AggregationReport:
    """Results of an aggregation.

    Attributes:
        request: Request of the aggregation.
        outputs: Outputs that were written.
        failures: Reasons for those that were not, by the path of an input or output.
    """

    request: AggregationRequest
    outputs: list[Output] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)

    def write(self) -> None:
        """Writes `REPORT_NAME` to the output folder."""
        facts: Mapping[str, Any] = {
            "request": self.request.to_json(),
            "outputs": [output.to_json() for output in self.outputs],
            "failures": self.failures,
        }
        publish_json(self.request.output_directory / REPORT_NAME, facts)
