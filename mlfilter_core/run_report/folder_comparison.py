"""Two output folders compared, to judge a change of encoder, head or machine."""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from mlfilter_core.run_report.collect import collect
from mlfilter_core.run_report.facts import OutputFacts, RunFacts
from mlfilter_core.run_report.paired_scores import PairedScores, pair_scores
from mlfilter_core.tallies.score_statistics import ScoreStatistics

QUANTILES = (0.1, 0.5, 0.9)
TOP_SHARES = (0.3, 0.1)  # what a filter may keep: the best 30 and 10 per cent of each side


@dataclass(frozen=True)
class Side:
    """One of the two output folders.

    Attributes:
        output_dir: The folder.
        counts: `lines`, `documents`, `rejected`, `truncated`, `tokens`, `annotated`.
        speeds: Speed of each flow's latest run: `documents/s` and `tokens/s` over its wall time, `documents/s, a
            worker` and `tokens/s, a worker` over the time that workers were busy.
        notices: Notices for the top of the comparison.
    """

    output_dir: str
    counts: Mapping[str, int]
    speeds: Mapping[str, Mapping[str, float]]
    notices: Sequence[str]


@dataclass(frozen=True)
class ScoreShift:
    """One score on both sides, over all documents of each side. Values are pairs: first side, second side.

    Attributes:
        name: Name of the score.
        documents: Documents with the score.
        means: Means.
        deviations: Standard deviations.
        quantiles: Quantiles by share, such as `0.5`.
    """

    name: str
    documents: tuple[int, int]
    means: tuple[float, float]
    deviations: tuple[float, float]
    quantiles: Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class ScoreAgreement:
    """One score over the documents that both sides have.

    Attributes:
        name: Name of the score.
        documents: Number of documents.
        pearson: Pearson correlation; None where a side has only one value.
        spearman: Rank correlation; None likewise.
        mean_difference: Mean of second minus first.
        mean_absolute_difference: Mean of its absolute value.
        largest_difference: Maximum of its absolute value.
        agreement: Share of documents that both sides keep, or neither, by threshold.
        kept: Share of documents that each side keeps, by threshold.
        top: Overlap of the best documents of both sides, by their share, such as `0.3`.
    """

    name: str
    documents: int
    pearson: float | None
    spearman: float | None
    mean_difference: float
    mean_absolute_difference: float
    largest_difference: float
    agreement: Mapping[str, float]
    kept: Mapping[str, tuple[float, float]]
    top: Mapping[str, float]


@dataclass(frozen=True)
class Comparison:
    """Two output folders.

    Attributes:
        sides: First and second side.
        only_in: Scores of one side only.
        shifts: Scores of both sides, over all documents.
        agreements: The same scores, document by document; empty where the sides share no document.
        paired_files: Annotated files of both sides that were compared.
        left_out_files: Annotated files of both sides that were skipped, because enough documents were compared.
        without_partner: Documents of the compared files that one side lacks.
        have_same_clusters: Whether the files of clusters of both sides were made with the same centroids; None where a
            side has none.
        have_same_duplicates: Whether the same documents are duplicates on both sides; None where a side has no files of
            duplicates.
    """

    sides: tuple[Side, Side]
    only_in: tuple[Sequence[str], Sequence[str]]
    shifts: Sequence[ScoreShift]
    agreements: Sequence[ScoreAgreement]
    paired_files: int
    left_out_files: int
    without_partner: int
    have_same_clusters: bool | None = None
    have_same_duplicates: bool | None = None


def compare(one: Path, other: Path, thresholds: Sequence[float] = ()) -> Comparison:
    """Compares two output folders.

    Args:
        one: Output folder of one or several jobs.
        other: Another one.
        thresholds: Lowest scores of documents to keep.

    Raises:
        ConfigError: A folder has nothing to compare.
        SourceError: An annotated file is broken.
    """
    facts = (collect(one), collect(other))
    names, other_names = (side.scores.names if side.scores else () for side in facts)
    shared = [name for name in names if name in other_names]
    pairs = pair_scores(one, other, shared)
    return Comparison(
        sides=(_side(facts[0]), _side(facts[1])),
        only_in=(
            [name for name in names if name not in shared],
            [name for name in other_names if name not in shared],
        ),
        shifts=[_shift(name, *(side.scores for side in facts if side.scores)) for name in shared],
        agreements=[_agreement(i, pairs, thresholds) for i in range(len(shared))] if len(pairs.one) else [],
        paired_files=pairs.n_files,
        left_out_files=pairs.n_left_out,
        without_partner=pairs.n_without_partner,
        have_same_clusters=_have_same_clusters(*facts),
        have_same_duplicates=_have_same_duplicates(*facts),
    )


def _have_same_clusters(one: OutputFacts, other: OutputFacts) -> bool | None:
    if one.clustered is None or other.clustered is None:
        return None
    return one.clustered.centroids.keys() == other.clustered.centroids.keys()


def _have_same_duplicates(one: OutputFacts, other: OutputFacts) -> bool | None:
    if one.deduplicated is None or other.deduplicated is None:
        return None
    return one.deduplicated.found.keys() == other.deduplicated.found.keys()


def _side(facts: OutputFacts) -> Side:
    names = ("lines", "documents", "rejected", "truncated", "tokens", "annotated")
    speeds = {
        flow: _speeds(run)
        for flow in dict.fromkeys(run.flow for run in facts.runs)
        if (run := facts.last_run(flow)) is not None and run.has_speed and run.seconds
    }
    return Side(facts.output_dir, {name: getattr(facts.totals, name) for name in names}, speeds, facts.notices)


def _speeds(run: RunFacts) -> dict[str, float]:
    speeds = {}
    for unit, n in (("documents", run.documents), ("tokens", run.tokens)):
        if n:
            speeds[f"{unit}/s"] = n / run.seconds
        if n and run.busy_worker_s:
            speeds[f"{unit}/s, a worker"] = n / run.busy_worker_s
    return speeds


def _shift(name: str, one: ScoreStatistics, other: ScoreStatistics) -> ScoreShift:
    i, j = one.names.index(name), other.names.index(name)
    return ScoreShift(
        name,
        (one.n, other.n),
        (float(one.means[i]), float(other.means[j])),
        (float(one.deviations()[i]), float(other.deviations()[j])),
        {str(q): (one.histograms[i].quantile(q), other.histograms[j].quantile(q)) for q in QUANTILES},
    )


def _agreement(i: int, pairs: PairedScores, thresholds: Sequence[float]) -> ScoreAgreement:
    one, other = pairs.one[:, i].astype(np.float64), pairs.other[:, i].astype(np.float64)
    differences = other - one
    return ScoreAgreement(
        pairs.names[i],
        len(one),
        _correlation(one, other),
        _correlation(stats.rankdata(one), stats.rankdata(other)),
        float(differences.mean()),
        float(np.abs(differences).mean()),
        float(np.abs(differences).max()),
        {str(t): float(((one >= t) == (other >= t)).mean()) for t in thresholds},
        {str(t): (float((one >= t).mean()), float((other >= t).mean())) for t in thresholds},
        {str(share): _shared_top(one, other, share) for share in TOP_SHARES},
    )


def _shared_top(one: NDArray[np.float64], other: NDArray[np.float64], share: float) -> float:
    """Returns the overlap of the best documents of both sides; equal scores are in document order."""
    n = max(1, math.ceil(share * len(one)))
    best = [set(np.argsort(-scores, kind="stable")[:n].tolist()) for scores in (one, other)]
    return len(best[0] & best[1]) / n


def _correlation(one: NDArray[np.float64], other: NDArray[np.float64]) -> float | None:
    if len(one) < 2 or one.min() == one.max() or other.min() == other.max():
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.NearConstantInputWarning)
        return float(stats.pearsonr(one, other).statistic)
