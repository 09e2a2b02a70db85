"""Proves that the limits of filtered files are those of their corpus: the percentile, threshold or tokens asked for."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

from mlfilter_core.config.filtering import FILTERED_DIR, Bound
from mlfilter_core.filtering.survey import SUFFIX, SURVEY_FOLDER
from mlfilter_core.filtering.thresholds import describe_rank
from mlfilter_core.verification.discrepancies import Place
from mlfilter_core.verification.output_kinds import VerifyRequest
from mlfilter_core.verification.stated_limits import GroupLimit, LimitTally, StatedLimits, why_wrong
from mlfilter_core.verification.whole_folder import N_SHOWN
from mlfilter_core.wording import plural

MAX_PROBLEMS = 40  # of each kind; arbitrary


@dataclass(frozen=True)
class FilterTally:
    """The limits of a filtered file, with what its documents amount to, in types that are sent fast.

    Attributes:
        limits: Name, bound, ranks by group and token budgets by group of each score.
        counts: Counts of a tally, by score and group.
        is_complete: Whether every document of the annotated file was counted.
    """

    limits: Sequence[tuple[str, Bound, Mapping[str, int], Mapping[str, int]]]
    counts: Mapping[tuple[str, str], tuple[int, int, int, int, int]]
    is_complete: bool

    @staticmethod
    def of(limits: StatedLimits, is_complete: bool) -> "FilterTally":
        """Returns the tally of limits that counted documents."""
        return FilterTally(
            [(limit.name, limit.bound, limit.ranks, limit.shares) for limit in limits.limits],
            {key: tally.counts() for key, tally in limits.tallies.items()},
            is_complete,
        )


@dataclass
class _Limit:
    """The limit of a score in a group, over the files so far.

    Attributes:
        bound: What the job asked for.
        files: Number of files by the rank and the token budget that they state, and the first of them.
    """

    bound: Bound
    files: dict[tuple[int, int | None], tuple[int, str]] = field(default_factory=dict)

    def add_file(self, bound: Bound, rank: int, share: int | None, stem: str) -> None:
        n_files, first = self.files.get((rank, share), (0, stem))
        self.bound, self.files[rank, share] = bound, (n_files + 1, first)


class CorpusLimits:
    """The limits of filtered files with what their documents amount to, added up file by file.

    So memory holds each group once: with 16,000 groups, the limits of 2,000 files would fill it.
    """

    def __init__(self, request: VerifyRequest) -> None:
        """Takes the request of the verification."""
        self._surveys = request.output_dir / FILTERED_DIR / SURVEY_FOLDER
        self._limits: dict[tuple[str, str], _Limit] = {}
        self._tallies: defaultdict[tuple[str, str], LimitTally] = defaultdict(LimitTally)
        self._complete: set[str] = set()

    def add(self, place: Place) -> None:
        """Adds a filtered file."""
        found: FilterTally = place.tally
        if found.is_complete:
            self._complete.add(f"{place.stem}{SUFFIX}")
        for name, bound, ranks, shares in found.limits:
            for group, rank in ranks.items():
                if (known := self._limits.get((name, group))) is None:
                    known = self._limits[name, group] = _Limit(bound)
                known.add_file(bound, rank, shares.get(group), place.stem)
        for key, counts in found.counts.items():
            self._tallies[key] += LimitTally(*counts)

    def problems(self) -> Iterator[str]:
        """Yields the limits that differ from file to file, then those that are not the limits of the corpus.

        The latter only where all files of the corpus were counted; the surveys show which files it had.
        """
        yield from _some(self._differing())
        surveyed = {path.relative_to(self._surveys).as_posix() for path in self._surveys.rglob(f"[!.]*{SUFFIX}")}
        if surveyed == self._complete:
            yield from _some(self._wrong())

    def _differing(self) -> Iterator[str]:
        for (name, group), limit in self._limits.items():
            if len(limit.files) > 1:
                by_frequency = sorted(limit.files.items(), key=lambda item: -item[1][0])
                values = ", ".join(
                    f"{describe_rank(rank)} (rank {rank}{_of_tokens(share)}) in {plural(n, 'file')} "
                    f"({first}{', ...' if n > 1 else ''})"
                    for (rank, share), (n, first) in by_frequency[:N_SHOWN]
                )
                yield f"settings differ: limit of {name}{_for(group)} is {values}; filter again"

    def _wrong(self) -> Iterator[str]:
        shared: Counter[tuple[str, int]] = Counter()
        for (name, group), limit in self._limits.items():
            rank, share = next(reversed(limit.files))
            shared[name, limit.bound.best_tokens or 0] += share or 0
            stated = GroupLimit.of(rank)
            if why := why_wrong(limit.bound, share, stated, self._tallies[name, group]):
                asked = limit.bound.describe() if share is None else f"a share of {share:,} tokens"
                yield f"{name}: {asked}{_for(group)} is not {stated}: {why}; filter again"
        for (name, total), n_tokens in shared.items():
            if n_tokens > total:
                yield f"{name}: the shares of the groups are {n_tokens:,} tokens, and the total {total:,}; filter again"


def _of_tokens(share: int | None) -> str:
    return "" if share is None else f", {share:,} tokens"


def _for(group: str) -> str:
    return f" for {group!r}" if group else ""


def _some(problems: Iterator[str]) -> Iterator[str]:
    """Yields the first of very many problems, and how many more there are."""
    yield from islice(problems, MAX_PROBLEMS)
    if n_more := sum(1 for _ in problems):
        yield f"{n_more:,} more limits like these; filter again"
