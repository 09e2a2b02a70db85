"""One annotator beside the truth, in one language or in several."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlfilter_core.evaluation.agreement import NO_DOCUMENTS, Agreement, agreement
from mlfilter_core.evaluation.predictions import WITHOUT_TRUTH, Predictions
from mlfilter_core.evaluation.resampling import Interval, Pairs, bootstrap
from mlfilter_core.evaluation.scale import Scale
from mlfilter_core.evaluation.truth import Truth
from mlfilter_core.tallies.tally import Tally, merged

Floats = NDArray[np.float64]

INVALID = "invalid"
INVALID_TRUTH = "invalid_truth"
WITHOUT_PREDICTION = "truth_without_prediction"
REASONS = (INVALID, INVALID_TRUTH, WITHOUT_TRUTH, WITHOUT_PREDICTION)
ML_FILTER_INVALID = "-1"  # its name in the confusion matrix


@dataclass(frozen=True)
class Measuring:
    """How to compare.

    Attributes:
        scale: The labels.
        thresholds: Of the binary measures.
        n_resamples: For the intervals; 0 leaves them out.
        seed: Of the resamples.
    """

    scale: Scale
    thresholds: tuple[float, ...] = ()
    n_resamples: int = 1000
    seed: int = 0


@dataclass(frozen=True)
class Comparison:
    """How one annotator agrees with the truth.

    Attributes:
        annotator: Its name.
        language: Of the documents; None for those of all languages together.
        scale: The labels.
        truth: float64 (n,), the true scores of the documents with a valid score on both sides.
        predicted: float64 (n,), the annotator's.
        truth_of_invalid: float64 (m,), the true scores of documents to which the annotator gives no valid one.
        n_documents: Records of the annotator, those of one document each.
        left_out: Documents without a pair of scores, by reason: `invalid` where the annotator's is none,
            `invalid_truth` where the true one is; `predicted_without_truth`, `truth_without_prediction`.
        invalid_draws: Why there are invalid ones.
        duplicates: Documents that the annotator scored once more; the last counts.
        agreement: The measures of the n documents.
        intervals: Of the measures that are defined; empty where none were asked for, or there is one document.
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
        """`documents` are the `matched` ones, `predicted_without_truth` and `duplicates`."""
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
    def confusion(self) -> NDArray[np.int64]:
        """int64 (k, 1 + k): documents by true and by predicted label, of which the first is to have no valid score."""
        k = len(self.scale.labels)
        cells = self.scale.nearest(self.truth) * (1 + k) + 1 + self.scale.nearest(self.predicted)
        cells_of_invalid = self.scale.nearest(self.truth_of_invalid) * (1 + k)
        return np.bincount(np.concatenate([cells, cells_of_invalid]), minlength=k * (1 + k)).reshape(k, 1 + k)

    def to_json(self) -> dict[str, Any]:
        """Returns the whole of it but the scores; `metrics` and `CM` as ML-Filter writes them."""
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
        """Returns which documents and draws the measures leave out, in words."""
        tallies = {
            "left out": self.left_out,
            "invalid draws": self.invalid_draws,
            "scored more than once, the last counts": self.duplicates,
        }
        return [f"{title}: {tally}" for title, tally in tallies.items() if tally]

    def gaps(self) -> list[str]:
        """Returns which measures are undefined, in all or in some resamples, in words."""
        if not len(self.truth):
            return [f"all measures are undefined: {NO_DOCUMENTS}"]
        gaps: list[str] = []
        reasons: dict[str, list[str]] = {}
        for name, reason in self.agreement.undefined.items():
            reasons.setdefault(reason, []).append(name)
        if reasons:
            shown = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in reasons.items())
            gaps.append(f"undefined: {shown}")
        partly = {name: interval.undefined for name, interval in self.intervals.items() if interval.undefined}
        if partly:
            shown = ", ".join(f"{name} in {n:,}" for name, n in partly.items())
            gaps.append(f"undefined in some resamples, which the intervals leave out: {shown}")
        return gaps


def compare(parts: Sequence[Predictions], truth: Truth, measuring: Measuring) -> Comparison:
    """Compares the predictions of one annotator, of one language or of several together, with the truth."""
    left_out = merged(part.without_truth for part in parts)
    ids: list[str] = []
    pairs: list[tuple[float, float]] = []
    truth_of_invalid: list[float] = []
    for document_id, score in (item for part in parts for item in part.scores.items()):
        true_score = truth.scores.get(document_id)
        if true_score is None:
            left_out.add(INVALID_TRUTH, document_id)
        elif score is None:
            left_out.add(INVALID, document_id)
            truth_of_invalid.append(true_score)
        else:
            ids.append(document_id)
            pairs.append((true_score, score))
    language = parts[0].language if len(parts) == 1 else None
    for document_id in truth.ids() if language is None else truth.ids_in(language):
        if not any(document_id in part.scores for part in parts):
            left_out.add(WITHOUT_PREDICTION, document_id)
    true, predicted = np.array(pairs, np.float64).reshape(-1, 2).T
    found = agreement(true, predicted, measuring.scale, measuring.thresholds)
    return Comparison(
        annotator=parts[0].annotator,
        language=language,
        scale=measuring.scale,
        truth=true,
        predicted=predicted,
        truth_of_invalid=np.array(truth_of_invalid, np.float64),
        n_documents=sum(part.documents for part in parts),
        left_out=left_out,
        invalid_draws=merged(part.invalid_draws for part in parts),
        duplicates=merged(part.duplicates for part in parts),
        agreement=found,
        intervals=_intervals(true, predicted, ids, found, measuring),
    )


def _intervals(
    true: Floats, predicted: Floats, ids: list[str], found: Agreement, measuring: Measuring
) -> dict[str, Interval]:
    numbers = {document_id: i for i, document_id in enumerate(dict.fromkeys(ids))}
    if len(numbers) < 2 or not measuring.n_resamples:
        return {}
    documents = np.array([numbers[document_id] for document_id in ids])
    intervals = bootstrap(
        *(Pairs(true, predicted), documents, measuring.scale, measuring.thresholds),
        *(measuring.n_resamples, measuring.seed),
    )
    return {name: intervals[name] for name, value in found.values.items() if value is not None}
