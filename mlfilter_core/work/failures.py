"""Files that failed, those for the same reason together: a full disk fails ten thousand files for one."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath

from mlfilter_core.wording import plural

N_SHOWN = 3

_NUMBER = re.compile(r"\d+")


def same_reason(name: str, reason: str) -> str:
    """Returns a reason such that it is the same for files that differ in their names and in numbers alone.

    Args:
        name: Name of the file or part.
        reason: Why it failed.

    Example: `a/x.jsonl` and `/corpus/a/x.jsonl:7: no "text"` give `FILE no "text"`.
    """
    relative = name.partition(" (")[0]
    stem = PurePosixPath(relative).name.partition(".")[0]
    for named in (relative, f"{stem}.") if stem else ():
        reason = re.sub(rf"\S*{re.escape(named)}\S*", "FILE", reason)
    return _NUMBER.sub("N", reason)


def by_reason(failures: Iterable[tuple[str, str]]) -> list[tuple[str, list[str]]]:
    """Returns each reason, as the first of its files states it, with the names of its files.

    Args:
        failures: Names of files, and why they failed.
    """
    found: dict[str, tuple[str, list[str]]] = {}
    for name, reason in failures:
        found.setdefault(same_reason(name, reason), (reason, []))[1].append(name)
    return list(found.values())


def describe_failures(failures: Mapping[str, str], most: int) -> str:
    """Returns a line for each reason, with the first of its files and how many more there are.

    Args:
        failures: Reasons by the names of the files.
        most: Most lines.
    """
    reasons = by_reason(failures.items())
    others = [f" and {len(names) - 1:,} more" if len(names) > 1 else "" for _, names in reasons]
    lines = [f"  {names[0]}{more}: {reason}" for (reason, names), more in zip(reasons, others, strict=True)]
    left = [f"  and {plural(len(lines) - most, 'more reason')}; the report has all"] if len(lines) > most else []
    return "\n".join(lines[:most] + left)


class RepeatedFailures:
    """Says failures one by one as they happen; of those for the same reason the first ones, then ever fewer."""

    def __init__(self) -> None:
        self._n: Counter[str] = Counter()

    def describe(self, name: str, reason: str) -> str:
        """Counts a failure; returns a line about it, or nothing where it is not worth one."""
        key = same_reason(name, reason)
        self._n[key] += 1
        n = self._n[key]
        if n <= N_SHOWN:
            return f"{name} failed: {reason}"
        is_round = n >= 10 and n % 10 ** (len(str(n)) - 1) == 0  # 10, 20, ..., 100, 200, ...
        return f"{name} failed, the {n:,}th file for this reason: {reason}" if is_round else ""
