"""The request of an evaluation, and its results as tables."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlfilter_core.evaluation.agreement import MeasureOptions
from mlfilter_core.evaluation.annotator_result import AnnotatorResult
from mlfilter_core.evaluation.draws import Aggregation
from mlfilter_core.evaluation.score_fields import ScoreFields
from mlfilter_core.evaluation.truth import Truth
from mlfilter_core.tallies.tally import Tally

MEASURES = (
    *("Acc", "MAE", "MSE", "Macro-F1", "Micro-F1", "Weighted-F1", "Spearman", "Kendall", "Pearson"),
    *("Krippendorff", "Cohen", "Cohen-Quadratic", "Fleiss"),
)
THRESHOLD_MEASURES = ("TA", "Binary-Precision", "Binary-Recall", "Binary-F1")
CLASS_MEASURES = ("CA", "F1")
# Those that fit in a terminal; evaluation.md contains all.
SHOWN_MEASURES = ("Acc", "MAE", "Macro-F1", "Spearman", "Krippendorff", "Cohen-Quadratic")
ALL_LANGUAGES = "all"
UNDEFINED = "-"

Table = list[list[str]]


@dataclass(frozen=True)
class EvaluationRequest:
    """What to evaluate, and how.

    Attributes:
        input_directory: Folder with the annotators' files.
        output_directory: Folder for the results.
        truth: File or folder with the true labels.
        aggregation: Aggregation of several draws to one score.
        options: Options of the measures.
        label_key: Key of the label in a record of the truth; None takes the usual ones.
        score_fields: Fields of annotated files to evaluate; None evaluates draw files.
    """

    input_directory: Path
    output_directory: Path
    truth: Path
    aggregation: Aggregation
    options: MeasureOptions
    label_key: str | None = None
    score_fields: ScoreFields | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "input_directory": str(self.input_directory),
            "path_to_ground_truth_file": str(self.truth),
            "aggregation_strategy": self.aggregation,
            "valid_labels": self.options.scale.labels,
            "thresholds": self.options.thresholds,
            "label_key": self.label_key,
            "score_keys": self.score_fields.written if self.score_fields else None,
            "bootstrap": self.options.n_resamples,
            "seed": self.options.seed,
        }


@dataclass(frozen=True)
class EvaluationReport:
    """The results of all annotators in all languages.

    Attributes:
        request: Request of the evaluation.
        truth: True scores.
        bad_lines: Lines of the annotators' files without a record.
        results: Results; by annotator, then by language, with all languages of an annotator together last.
    """

    request: EvaluationRequest
    truth: Truth
    bad_lines: Tally
    results: Sequence[AnnotatorResult]

    def to_json(self) -> dict[str, Any]:
        return {
            "request": self.request.to_json(),
            "truth": {
                "files": [str(path) for path in self.truth.files],
                "documents": len(self.truth.scores),
                "invalid": len(self.truth.invalid),
                "merged_duplicates": self.truth.n_merged,
                "invalid_labels": self.truth.invalid_labels.to_json(),
                "bad_lines": self.truth.bad_lines.to_json(),
            },
            "bad_lines": self.bad_lines.to_json(),
            "comparisons": [result.to_json() for result in self.results],
        }

    def to_markdown(self) -> str:
        """Returns a page with all tables and remarks."""
        options = self.request.options
        measures = {
            "Agreement": MEASURES,
            **{
                f"Scores of {t:g} and above": [f"{name}-{t}" for name in THRESHOLD_MEASURES] for t in options.thresholds
            },
            "Classes": [f"{name}-{label}" for name in CLASS_MEASURES for label in options.scale.names],
        }
        tables = {"Documents": self._counts(), **{title: self.table(names) for title, names in measures.items()}}
        sections = [f"## {title}\n\n{_markdown_table(table)}" for title, table in tables.items()]
        remarks = "\n".join(f"- {remark}" for remark in (*self.exclusions(), *self.gaps()))
        if remarks:
            sections.append(f"## Remarks\n\n{remarks}")
        return "\n\n".join(["# Predicted annotations beside the truth", *self.about(), *sections]) + "\n"

    def shown_table(self) -> Table:
        """Returns the table for the terminal: a heading, then a row for each result."""
        table = self.table(
            [*SHOWN_MEASURES, *(f"Binary-F1-{threshold}" for threshold in self.request.options.thresholds)]
        )
        valid = [f"{result.counts['valid']:,} of {result.counts['matched']:,}" for result in self.results]
        return [[*row[:2], cell, *row[2:]] for row, cell in zip(table, ["valid", *valid], strict=True)]

    def table(self, names: Sequence[str]) -> Table:
        """Returns measures with their intervals: a heading, then a row for each result."""
        rows = [[*_names(result), *(_measure(result, name) for name in names)] for result in self.results]
        return [["annotator", "language", *names], *rows]

    def _counts(self) -> Table:
        rows = [[*_names(result), *(f"{n:,}" for n in result.counts.values())] for result in self.results]
        return [["annotator", "language", *self.results[0].counts], *rows]

    def about(self) -> list[str]:
        """Returns paragraphs about the truth, the labels and the intervals."""
        truth, options = self.truth, self.request.options
        intervals = (
            f"In brackets 95 % intervals: percentiles over {options.n_resamples:,} resamples of the documents."
            if options.n_resamples
            else "Without intervals."
        )
        return [
            f"Truth: {self.request.truth} (files: {len(truth.files):,}); "
            f"{len(truth.scores):,} documents with a valid label, {len(truth.invalid):,} without; "
            f"{truth.n_merged:,} records repeat another.",
            f"Labels: {', '.join(options.scale.names)}; several draws are aggregated by: "
            f"{self.request.aggregation}. {intervals}",
        ]

    def exclusions(self) -> list[str]:
        """Returns what the measures leave out, with reasons and examples."""
        tallies = {
            "truth, invalid labels": self.truth.invalid_labels,
            "truth, bad lines": self.truth.bad_lines,
            "bad lines": self.bad_lines,
        }
        of_all = [f"{title}: {tally}" for title, tally in tallies.items() if tally]
        return of_all + [f"{', '.join(_names(part))}: {line}" for part in self.results for line in part.exclusions()]

    def gaps(self) -> list[str]:
        """Returns which measures are undefined, with reasons."""
        return [f"{', '.join(_names(result))}: {gap}" for result in self.results for gap in result.gaps()]


def _names(result: AnnotatorResult) -> list[str]:
    return [result.annotator, result.language or ALL_LANGUAGES]


def _measure(result: AnnotatorResult, name: str) -> str:
    value = result.agreement.values[name]
    if value is None:
        return UNDEFINED
    interval = result.intervals.get(name)
    if interval is None or interval.low is None:
        return f"{value:.3f}"
    return f"{value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def _markdown_table(table: Table) -> str:
    heading, *rows = [[cell.replace("|", "\\|") for cell in row] for row in table]
    lines = [heading, ["---", "---", *(["---:"] * (len(heading) - 2))], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
