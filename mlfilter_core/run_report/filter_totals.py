"""Sums over the filtered files of a folder, from what they state."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from math import isfinite
from typing import Any

from mlfilter_core.config.filtering import Bound
from mlfilter_core.filtering.kept_counts import KeptCounts
from mlfilter_core.filtering.ranks import score_of
from mlfilter_core.filtering.thresholds import describe_rank
from mlfilter_core.run_report.facts import FilterFacts
from mlfilter_core.run_report.shared_objects import OncePerObject
from mlfilter_core.verification.stated_facts import StatedFilter
from mlfilter_core.wording import natural_order


class FilterTotals:
    """Adds up filtered files, one after another."""

    def __init__(self) -> None:
        self._asked: dict[str, str] = {}
        self._needed = 1
        self._per: str | None = None
        self._ranks: defaultdict[str, dict[str, int]] = defaultdict(dict)
        self._shares: dict[str, dict[str, int]] = {}
        self._notes: Sequence[str] = ()
        self._reached: Counter[str] = Counter()
        self._counts = KeptCounts()
        self._by_group: defaultdict[str, KeptCounts] = defaultdict(KeptCounts)
        self._scores: defaultdict[tuple[str, str], tuple[int, float]] = defaultdict(lambda: (0, 0.0))
        self._without_score = 0
        self._n_files = 0
        self._have_one_limit = True
        self._request_of = OncePerObject(self._add_request)

    def add(self, stated: StatedFilter) -> None:
        """Adds a filtered file."""
        report = stated.report
        self._n_files += 1
        self._request_of(stated.request)
        self._reached.update(report["reached"])
        self._counts += _counts(report)
        for group, counts in report["by_group"].items():
            self._by_group[group] += _counts(counts)
        for group, sums in report.get("score_sums", {}).items():
            for name, (n_scored, total) in sums.items():
                known_n, known_total = self._scores[name, group]
                self._scores[name, group] = known_n + n_scored, known_total + total
        self._without_score += report["without_score"]
        self._notes = report.get("notes", ())  # of the whole corpus

    def notices(self) -> list[str]:
        """Returns the notices about the sums."""
        if self._have_one_limit:
            return []
        return ["filtered files have different limits: the counts include all of them; `ml_filter verify` lists them"]

    def facts(self) -> FilterFacts | None:
        """Returns the sums; None where no file was added."""
        if not self._n_files:
            return None
        return FilterFacts(
            asked=self._asked,
            needed=self._needed,
            per=self._per,
            limits={name: {group: _limit(rank) for group, rank in own.items()} for name, own in self._ranks.items()},
            limits_as_text={
                name: {group: describe_rank(rank) for group, rank in own.items()} for name, own in self._ranks.items()
            },
            reached=self._reached,
            counts=asdict(self._counts),
            by_group={
                group: asdict(counts)
                for group, counts in sorted(
                    self._by_group.items(), key=lambda item: (-item[1].documents, natural_order(item[0]))
                )
            },
            mean_scores={
                name: {
                    group: total / n_scored
                    for (of_score, group), (n_scored, total) in self._scores.items()
                    if of_score == name and n_scored
                }
                for name in self._asked
            },
            without_score=self._without_score,
            files=self._n_files,
            shares=self._shares,
            notes=self._notes,
        )

    def _add_request(self, request: Mapping[str, Any]) -> None:
        self._needed, self._per = request["at_least"], request["per"]
        has_shares = "shares" in request
        all_shares = request.get("shares", [{}] * len(request["keep"]))
        for asked, ranks, shares in zip(request["keep"], request["cuts"], all_shares, strict=True):
            name = asked["score"]
            bound = Bound(**{key: value for key, value in asked.items() if key != "score"}).describe(has_shares)
            known = self._ranks[name]
            self._have_one_limit &= self._asked.setdefault(name, bound) == bound
            self._have_one_limit &= all(known.get(group, rank) == rank for group, rank in ranks.items())
            known |= ranks
            if shares:
                self._shares.setdefault(name, {}).update(shares)


def _counts(stated: Mapping[str, int]) -> KeptCounts:
    return KeptCounts(**{name: stated[name] for name in KeptCounts.__dataclass_fields__})


def _limit(rank: int) -> float | None:
    score = score_of(rank)
    return score if isfinite(score) else None
