"""Files that failed, those for the same reason together: a full disk fails ten thousand files for one."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath

N_SHOWN = 3

MAX_COMPARED = 2000  # characters of a reason

_PART = re.compile(r" \(\d+ of \d+\)$")
_PLACE = re.compile(r":\d+")
_COUNTS = re.compile(r"\b\d+ of \d+\b")


def same_reason(name: str, reason: str) -> str:
    """Returns a reason such that it is the same for files that differ in their names, lines and counts alone.

    Args:
        name: Name of the file or part.
        reason: Why it failed.

    Example: `a/x.jsonl` and `/corpus/a/x.jsonl:7: no "text"` give `FILE no "text"`.
    """
    relative = _PART.sub("", name)
    stem = PurePosixPath(relative).name.partition(".")[0]
    named = [re.escape(relative), *([rf"{re.escape(stem)}\."] if stem else [])]
    is_file = re.compile(rf"(^|[/'\"(])({'|'.join(named)})")
    words = ["FILE" if is_file.search(word) else word for word in reason[:MAX_COMPARED].split(" ")]
    return _COUNTS.sub("N of N", _PLACE.sub(":N", " ".join(words)))


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
    """Returns a line for each of the first files that failed for a reason, and how many more there are.

    Args:
        failures: Reasons by the names of the files.
        most: Most lines.
    """
    lines: list[str] = []
    for _, names in by_reason(failures.items()):
        lines += [f"  {name}: {failures[name]}" for name in names[:N_SHOWN]]
        if len(names) > N_SHOWN:
            lines.append(f"  and {len(names) - N_SHOWN:,} more for the same reason")
    return "\n".join(lines[:most] + (["  and others"] if len(lines) > most else []))


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
