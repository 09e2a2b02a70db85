"""All comparisons of an evaluation as tables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlfilter_core.evaluation.comparison import Comparison
from mlfilter_core.evaluation.truth import Truth
from mlfilter_core.tallies.tally import Tally

MEASURES = (
    *("Acc", "MAE", "MSE", "Macro-F1", "Micro-F1", "Weighted-F1", "Spearman", "Kendall", "Pearson"),
    *("Krippendorff", "Cohen", "Cohen-Quadratic", "Fleiss"),
)
THRESHOLD_MEASURES = ("TA", "Binary-Precision", "Binary-Recall", "Binary-F1")
CLASS_MEASURES = ("CA", "F1")
# What a terminal has room for; evaluation.md has all.
SHOWN_MEASURES = ("Acc", "MAE", "Macro-F1", "Spearman", "Krippendorff", "Cohen-Quadratic")
ALL_LANGUAGES = "all"
UNDEFINED = "-"

Table = list[list[str]]


@dataclass(frozen=True)
class EvaluationReport:
    """What an evaluation found.

    Attributes:
        request: What was asked for, as JSON says it.
        truth: What the annotators are compared with.
        bad_lines: Lines of the annotators' files that are no records.
        thresholds: Of the binary measures.
        comparisons: By annotator, then language; all languages of an annotator together come last.
    """

    request: Mapping[str, Any]
    truth: Truth
    bad_lines: Tally
    thresholds: Sequence[float]
    comparisons: Sequence[Comparison]

    def to_json(self) -> dict[str, Any]:
        return {
            "request": self.request,
            "truth": {
                "files": [str(path) for path in self.truth.files],
                "documents": len(self.truth.scores),
                "invalid": len(self.truth.invalid),
                "merged_duplicates": self.truth.n_merged,
                "invalid_labels": self.truth.invalid_labels.to_json(),
                "bad_lines": self.truth.bad_lines.to_json(),
            },
            "bad_lines": self.bad_lines.to_json(),
            "comparisons": [comparison.to_json() for comparison in self.comparisons],
        }

    def to_markdown(self) -> str:
        """Returns all tables, and what they leave open."""
        sections = ["# Predicted annotations beside the truth", *self.about()]
        counts = list(self.comparisons[0].counts)
        rows = [[*_names(part), *(f"{part.counts[name]:,}" for name in counts)] for part in self.comparisons]
        sections += ["## Documents", _markdown_table([["annotator", "language", *counts], *rows])]
        sections += ["## Agreement", _markdown_table(self.table(MEASURES))]
        for threshold in self.thresholds:
            names = [f"{name}-{threshold}" for name in THRESHOLD_MEASURES]
            sections += [f"## Scores of {threshold:g} and above", _markdown_table(self.table(names))]
        labels = self.comparisons[0].scale.names
        names = [f"{name}-{label}" for name in CLASS_MEASURES for label in labels]
        sections += ["## Classes", _markdown_table(self.table(names))]
        remarks = [f"- {remark}" for remark in (*self.exclusions(), *self.gaps())]
        sections += ["## Remarks", "\n".join(remarks)] if remarks else []
        return "\n\n".join(sections) + "\n"

    def shown_table(self) -> Table:
        """Returns what is to be seen at once: a heading, then a row for each comparison."""
        binary = [f"Binary-F1-{threshold}" for threshold in self.thresholds]
        heading, *rows = self.table([*SHOWN_MEASURES, *binary])
        of_matched = [f"{part.counts['valid']:,} of {part.counts['matched']:,}" for part in self.comparisons]
        return [[*heading[:2], "valid", *heading[2:]]] + [
            [*row[:2], n_valid, *row[2:]] for row, n_valid in zip(rows, of_matched, strict=True)
        ]

    def table(self, names: Sequence[str]) -> Table:
        """Returns measures with their intervals: a heading, then a row for each comparison."""
        rows = [[*_names(part), *(_measure(part, name) for name in names)] for part in self.comparisons]
        return [["annotator", "language", *names], *rows]

    def about(self) -> list[str]:
        """Returns what was compared with what, and how, as paragraphs."""
        truth, request = self.truth, self.request
        intervals = (
            f"In brackets 95 % intervals: percentiles over {request['bootstrap']:,} resamples of the documents."
            if request["bootstrap"]
            else "Without intervals."
        )
        return [
            f"Truth: {request['path_to_ground_truth_file']} (files: {len(truth.files):,}); "
            f"{len(truth.scores):,} documents with a valid label, {len(truth.invalid):,} without; "
            f"{truth.n_merged:,} records repeat another.",
            f"Labels: {', '.join(self.comparisons[0].scale.names)}; several draws are made one by: "
            f"{request['aggregation_strategy']}. {intervals}",
        ]

    def exclusions(self) -> list[str]:
        """Returns what was left out, with reasons and examples."""
        tallies = {
            "truth, invalid labels": self.truth.invalid_labels,
            "truth, bad lines": self.truth.bad_lines,
            "bad lines": self.bad_lines,
        }
        of_all = [f"{title}: {tally}" for title, tally in tallies.items() if tally]
        return of_all + [
            f"{', '.join(_names(part))}: {exclusion}" for part in self.comparisons for exclusion in part.exclusions()
        ]

    def gaps(self) -> list[str]:
        """Returns which measures are undefined, with reasons."""
        return [f"{', '.join(_names(part))}: {gap}" for part in self.comparisons for gap in part.gaps()]


def _names(comparison: Comparison) -> list[str]:
    return [comparison.annotator, comparison.language or ALL_LANGUAGES]


def _measure(comparison: Comparison, name: str) -> str:
    value = comparison.agreement.values[name]
    if value is None:
        return UNDEFINED
    interval = comparison.intervals.get(name)
    if interval is None or interval.low is None:
        return f"{value:.3f}"
    return f"{value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def _markdown_table(table: Table) -> str:
    heading, *rows = [[cell.replace("|", "\\|") for cell in row] for row in table]
    lines = [heading, ["---", "---", *(["---:"] * (len(heading) - 2))], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
