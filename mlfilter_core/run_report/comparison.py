"""Two output folders side by side, for a change of encoder, head or machine."""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from mlfilter_core.run_report.collect import collect
from mlfilter_core.run_report.facts import TRAINING, OutputFacts
from mlfilter_core.run_report.paired_scores import PairedScores, pair_scores

QUANTILES = (0.1, 0.5, 0.9)
TOP_SHARES = (0.3, 0.1)  # that a filter may keep: of each side its own best 30 and 10 per cent


@dataclass(frozen=True)
class Side:
    """One of the two.

    Attributes:
        output_dir: The folder.
        counts: `lines`, `documents`, `rejected`, `truncated`, `tokens`, `annotated`.
        speeds: By flow, `documents/s` and `tokens/s` of the latest run over its wall time, and `documents/s, a worker`
            and `tokens/s, a worker` while it was at files.
        notices: What is to be known of it first.
    """

    output_dir: str
    counts: Mapping[str, int]
    speeds: Mapping[str, Mapping[str, float]]
    notices: Sequence[str]


@dataclass(frozen=True)
class ScoreShift:
    """One score on both sides, over all documents of each; first the one, then the other.

    Attributes:
        name: Of the column.
        documents: That have it.
        means: Of all documents.
        deviations: Standard deviations.
        quantiles: By share, as `0.5`.
    """

    name: str
    documents: tuple[int, int]
    means: tuple[float, float]
    deviations: tuple[float, float]
    quantiles: Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class ScoreAgreement:
    """One score of the documents that both sides have.

    Attributes:
        name: Of the column.
        documents: That both have.
        pearson: Correlation; None where one side has one value only.
        spearman: Of ranks; the same.
        mean_difference: The other's less the one's.
        mean_absolute_difference: Without signs.
        largest_difference: Without its sign.
        agreement: By threshold, the share of documents that both sides keep, or neither.
        kept: By threshold, the share that each side keeps.
        top: By share, as `0.3`: of the documents that one side has among its best so many, the share that the other has
            there as well.
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
        sides: The one and the other.
        only_in: Scores that one side has alone.
        shifts: Of the scores that both have.
        agreements: Of the same, document by document; empty where no document is on both sides.
        paired_files: Annotated files that both have and that were compared.
        left_out_files: That both have and that were not, because enough documents were.
        without_partner: Documents of the compared files that one side lacks.
    """

    sides: tuple[Side, Side]
    only_in: tuple[Sequence[str], Sequence[str]]
    shifts: Sequence[ScoreShift]
    agreements: Sequence[ScoreAgreement]
    paired_files: int
    left_out_files: int
    without_partner: int


def compare(one: Path, other: Path, thresholds: Sequence[float] = ()) -> Comparison:
    """Compares two output folders.

    Args:
        one: The output folder of a job, or of several.
        other: Another.
        thresholds: A document is kept that reaches one.

    Raises:
        ConfigError: A folder has nothing to compare.
        SourceError: An annotated file is broken.
    """
    facts = (collect(one), collect(other))
    names = [facts_of.scores.names if facts_of.scores else () for facts_of in facts]
    shared = [name for name in names[0] if name in names[1]]
    pairs = pair_scores(one, other, shared)
    return Comparison(
        sides=(_side(facts[0]), _side(facts[1])),
        only_in=(
            [name for name in names[0] if name not in shared],
            [name for name in names[1] if name not in shared],
        ),
        shifts=[_shift(name, facts) for name in shared],
        agreements=[_agreement(i, pairs, thresholds) for i in range(len(shared))] if len(pairs.one) else [],
        paired_files=pairs.n_files,
        left_out_files=pairs.n_left_out,
        without_partner=pairs.n_without_partner,
    )


def _side(facts: OutputFacts) -> Side:
    counts = {
        name: getattr(facts.totals, name)
        for name in ("lines", "documents", "rejected", "truncated", "tokens", "annotated")
    }
    speeds: dict[str, dict[str, float]] = {}
    for flow in dict.fromkeys(run.flow for run in facts.runs):
        run = facts.last_run(flow)
        if run is None or not run.seconds or flow == TRAINING:
            continue
        speeds[flow] = {}
        for unit, n in (("documents", run.documents), ("tokens", run.tokens)):
            if n:
                speeds[flow][f"{unit}/s"] = n / run.seconds
                if run.busy_worker_s:
                    speeds[flow][f"{unit}/s, a worker"] = n / run.busy_worker_s
    return Side(facts.output_dir, counts, speeds, facts.notices)


def _shift(name: str, facts: Sequence[OutputFacts]) -> ScoreShift:
    found = []
    for side in facts:
        assert side.scores is not None, "the score is one of it"
        i = side.scores.names.index(name)
        found.append((side.scores, i))
    (one, i), (other, j) = found
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
    """Returns which share of the best of one side is among the best of the other; equal scores in document order."""
    n = max(1, math.ceil(share * len(one)))
    best = [set(np.argsort(-scores, kind="stable")[:n].tolist()) for scores in (one, other)]
    return len(best[0] & best[1]) / n


def _correlation(one: NDArray[np.float64], other: NDArray[np.float64]) -> float | None:
    if len(one) < 2 or one.min() == one.max() or other.min() == other.max():
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.NearConstantInputWarning)
        return float(stats.pearsonr(one, other).statistic)
