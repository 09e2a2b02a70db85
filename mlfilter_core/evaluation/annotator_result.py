"""The agreement of one annotator with the truth, in one language or in several together."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from mlfilter_core.evaluation.agreement import (
    NO_DOCUMENTS,
    Agreement,
    Floats,
    MeasureOptions,
    Pairs,
    Places,
    agreement,
)
from mlfilter_core.evaluation.predictions import WITHOUT_TRUTH, Predictions
from mlfilter_core.evaluation.resampling import Interval, bootstrap
from mlfilter_core.evaluation.scale import Scale
from mlfilter_core.evaluation.truth import Truth
from mlfilter_core.tallies.tally import Tally, merged

INVALID = "invalid"
INVALID_TRUTH = "invalid_truth"
WITHOUT_PREDICTION = "truth_without_prediction"
REASONS = (INVALID, INVALID_TRUTH, WITHOUT_TRUTH, WITHOUT_PREDICTION)
ML_FILTER_INVALID = "-1"  # ML-Filter's name for it in the confusion matrix


@dataclass(frozen=True)
class AnnotatorResult:
    """How well one annotator agrees with the truth.

    Attributes:
        annotator: Name.
        language: Language of the documents; None for all languages together.
        scale: Labels.
        truth: float64 (n,), true scores of the documents with a valid score on both sides.
        predicted: float64 (n,), predicted scores of the same documents.
        truth_of_invalid: float64 (m,), true scores of documents without a valid predicted score.
        n_documents: Number of the annotator's records; several may be of one document.
        left_out: Documents without a pair of scores, by reason: `invalid` without a valid predicted score,
            `invalid_truth` without a valid true one, `predicted_without_truth`, `truth_without_prediction`.
        invalid_draws: Draws that were ignored, by reason.
        duplicates: Documents that the annotator scored again; the last score counts.
        agreement: Measures of the n documents.
        intervals: Intervals of the defined measures; empty if none were requested, or for fewer than two documents.
    """

    annotator: str
    language: str | None
    scale: Scale
    truth: Floats
    predicted: Floats
    truth_of_invalid: Floats
    n_documents: int
    left_out: Tally
    invalid_draws: Tally
    duplicates: Tally
    agreement: Agreement
    intervals: dict[str, Interval]

    @property
    def counts(self) -> dict[str, int]:
        """Counts of documents and draws; `documents` = `matched` + `predicted_without_truth` + `duplicates`."""
        left_out = {reason: self.left_out.counts[reason] for reason in REASONS}
        low, high = self.scale.labels[0], self.scale.labels[-1]
        return {
            "documents": self.n_documents,
            "matched": len(self.truth) + left_out[INVALID] + left_out[INVALID_TRUTH],
            "valid": len(self.truth),
            **left_out,
            "duplicates": self.duplicates.total,
            "invalid_draws": self.invalid_draws.total,
            "beyond_scale": int(np.sum((self.predicted < low) | (self.predicted > high))),
        }

    @cached_property
    def confusion(self) -> Places:
        """int64 (k, 1 + k), documents by true and by predicted label; column 0 is for invalid predictions."""
        k = len(self.scale.labels)
        rows = self.scale.nearest(np.concatenate([self.truth, self.truth_of_invalid]))
        columns = np.pad(1 + self.scale.nearest(self.predicted), (0, len(self.truth_of_invalid)))
        return np.bincount(rows * (1 + k) + columns, minlength=k * (1 + k)).reshape(k, 1 + k)

    def to_json(self) -> dict[str, Any]:
        """Returns everything but the scores, with `metrics` and `CM` as ML-Filter writes them."""
        names = self.scale.names
        invalid = ML_FILTER_INVALID if ML_FILTER_INVALID not in names else INVALID
        rows = (dict(zip((invalid, *names), row, strict=True)) for row in self.confusion.tolist())
        return {
            "annotator": self.annotator,
            "language": self.language,
            "metrics": {"Invalid": self.left_out.counts[INVALID], **self.agreement.values},
            "undefined": self.agreement.undefined,
            "intervals": {name: asdict(interval) for name, interval in self.intervals.items()},
            "CM": dict(zip(names, rows, strict=True)),
            "counts": self.counts,
            "left_out": self.left_out.to_json(),
            "invalid_draws": self.invalid_draws.to_json(),
            "duplicates": self.duplicates.to_json(),
        }

    def exclusions(self) -> list[str]:
        """Returns as text which documents and draws the measures leave out."""
        tallies = {
            "left out": self.left_out,
            "invalid draws": self.invalid_draws,
            "scored more than once, the last score counts": self.duplicates,
        }
        return [f"{title}: {tally}" for title, tally in tallies.items() if tally]

    def gaps(self) -> list[str]:
        """Returns as text which measures are undefined, in all documents or in some resamples."""
        if not len(self.truth):
            return [f"all measures are undefined: {NO_DOCUMENTS}"]
        names_by_reason: dict[str, list[str]] = {}
        for name, reason in self.agreement.undefined.items():
            names_by_reason.setdefault(reason, []).append(name)
        always = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in names_by_reason.items())
        sometimes = ", ".join(
            f"{name} in {interval.undefined:,}" for name, interval in self.intervals.items() if interval.undefined
        )
        return [
            *([f"undefined: {always}"] if always else []),
            *([f"undefined in some resamples, which the intervals leave out: {sometimes}"] if sometimes else []),
        ]


def annotator_result(parts: Sequence[Predictions], truth: Truth, options: MeasureOptions) -> AnnotatorResult:
    """Measures the predictions of one annotator, in one language or in several together."""
    left_out = merged(part.without_truth for part in parts)
    numbers: dict[str, int] = {}  # number of each document with a valid score on both sides
    rows: list[tuple[int, float, float]] = []
    truth_of_invalid: list[float] = []
    for document_id, score in (item for part in parts for item in part.scores.items()):
        true_score = truth.scores.get(document_id)
        if true_score is None:
            left_out.add(INVALID_TRUTH, document_id)
        elif score is None:
            left_out.add(INVALID, document_id)
            truth_of_invalid.append(true_score)
        else:
            rows.append((numbers.setdefault(document_id, len(numbers)), true_score, score))
    language = parts[0].language if len(parts) == 1 else None
    for document_id in truth.ids() if language is None else truth.ids_in(language):
        if not any(document_id in part.scores for part in parts):
            left_out.add(WITHOUT_PREDICTION, document_id)
    documents, true, predicted = np.array(rows, np.float64).reshape(-1, 3).T
    pairs = Pairs(true, predicted)
    measured = agreement(pairs, options)
    intervals: dict[str, Interval] = {}
    if len(numbers) > 1 and options.n_resamples:
        intervals = bootstrap(pairs, documents.astype(np.int64), options)
    return AnnotatorResult(
        annotator=parts[0].annotator,
        language=language,
        scale=options.scale,
        truth=true,
        predicted=predicted,
        truth_of_invalid=np.array(truth_of_invalid, np.float64),
        n_documents=sum(part.documents for part in parts),
        left_out=left_out,
        invalid_draws=merged(part.invalid_draws for part in parts),
        duplicates=merged(part.duplicates for part in parts),
        agreement=measured,
        intervals={name: interval for name, interval in intervals.items() if name not in measured.undefined},
    )
