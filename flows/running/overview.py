"""What the rows of a run have in common, and the most telling ones, in one pass over any number of them."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from mlfilter_core.work.telling import Most, most_telling

# The UI loads a table artifact as a whole; files.jsonl has all rows.
MAX_ARTIFACT_ROWS = 1000
FAILED = "failed"

Row = dict[str, Any]


@dataclass(frozen=True)
class Overview:
    """An overview of rows.

    Attributes:
        columns: Columns of all rows.
        states: Number of rows by status.
        sums: Sums over the rows of finished files.
        first: First rows.
        failed: First rows of failed files.
        rejecting: Rows with most rejected lines, those first.
        slowest: Rows that took longest, those first.
    """

    columns: Sequence[str]
    states: Mapping[str, int]
    sums: Mapping[str, int]
    first: Sequence[Row]
    failed: Sequence[Row]
    rejecting: Sequence[Row]
    slowest: Sequence[Row]

    def telling_rows(self, n: int) -> list[Row]:
        """Returns at most `n` rows: all rows, or the failed files, those with most rejected lines, and the slowest."""
        if sum(self.states.values()) <= n:
            return list(self.first)
        rows = {row["file"]: row for row in (*self.failed, *self.rejecting, *self.slowest)}
        telling = most_telling(_names(self.failed), _names(self.rejecting), _names(self.slowest), n)
        return [rows[name] for name in telling]


def overview_of(rows: Iterable[Row], summed: Iterable[str]) -> Overview:
    """Returns the overview of rows.

    Args:
        rows: Rows of files, failed files first.
        summed: Columns with sums.
    """
    columns: dict[str, None] = {}
    states: Counter[str] = Counter()
    sums = dict.fromkeys(summed, 0)
    first, failed = list[Row](), list[Row]()
    rejecting, slowest = (Most[Row](MAX_ARTIFACT_ROWS, itemgetter(name)) for name in ("rejected", "seconds"))
    for row in rows:
        columns.update(dict.fromkeys(row))
        states[str(row["status"])] += 1
        if len(first) < MAX_ARTIFACT_ROWS:
            first.append(row)
        if row["status"] == FAILED:
            failed += [row] if len(failed) < MAX_ARTIFACT_ROWS else []
            continue
        for name in sums:
            sums[name] += row[name]
        if row.get("rejected"):
            rejecting.add(row)
        slowest.add(row)
    return Overview(list(columns), states, sums, first, failed, rejecting.sorted(), slowest.sorted())


def _names(rows: Iterable[Row]) -> list[str]:
    return [row["file"] for row in rows]
