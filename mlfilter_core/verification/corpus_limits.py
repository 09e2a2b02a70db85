"""Proves that the limits of filtered files are those of their corpus: the percentile, threshold or tokens asked for."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mlfilter_core.config.filtering import FILTERED_DIR
from mlfilter_core.filtering.survey import SUFFIX, SURVEY_FOLDER
from mlfilter_core.verification.discrepancies import Place
from mlfilter_core.verification.output_kinds import VerifyRequest
from mlfilter_core.verification.stated_limits import LimitTally, StatedLimit, StatedLimits, why_wrong


@dataclass(frozen=True)
class FilterTally:
    """The limits of a filtered file, with what its documents amount to.

    Attributes:
        limits: The limits.
        is_complete: Whether every document of the annotated file was counted.
    """

    limits: StatedLimits
    is_complete: bool


def check_limits(places: Sequence[Place], request: VerifyRequest) -> Iterator[str]:
    """Yields the limits that are not those of the corpus; nothing where some files of the corpus were not counted.

    The surveys show which files the corpus had.
    """
    tallies: defaultdict[tuple[str, str], LimitTally] = defaultdict(LimitTally)
    limits: dict[tuple[str, str], StatedLimit] = {}
    for place in places:
        found: StatedLimits = place.tally.limits
        for key, tally in found.tallies.items():
            tallies[key] += tally
        limits |= {(limit.name, group): limit for limit in found.limits for group in limit.groups}
    surveys = request.output_dir / FILTERED_DIR / SURVEY_FOLDER
    surveyed = {path.relative_to(surveys).as_posix() for path in surveys.rglob(f"[!.]*{SUFFIX}")}
    if surveyed != {f"{place.stem}{SUFFIX}" for place in places if place.tally.is_complete}:
        return
    for (name, group), limit in limits.items():
        if why := why_wrong(limit, group, tallies[name, group]):
            of_group = f" for {group!r}" if group else ""
            yield f"{name}: {limit.bound.describe()}{of_group} is not {limit.groups[group]}: {why}; filter again"
