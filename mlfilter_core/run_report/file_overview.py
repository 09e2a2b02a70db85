"""What a report shows of any number of files, found in one pass over them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mlfilter_core.job_kinds import kind_of_flow
from mlfilter_core.run_report.facts import FileFacts
from mlfilter_core.run_report.run_files import FAILED
from mlfilter_core.work.failures import same_reason
from mlfilter_core.work.telling import Most, most_telling

MAX_TABLE_ROWS = 20_000  # 4 MB
MAX_REASONS, MAX_NAMES, MAX_SLOWEST, MAX_KEPT_FILES = 50, 5, 10, 5


@dataclass(frozen=True)
class FailedFiles:
    """Files that failed for one reason.

    Attributes:
        reason: The reason, as the first of them states it.
        flow: Name of the flow.
        names: First names.
        n: Number of the files.
    """

    reason: str
    flow: str
    names: Sequence[str]
    n: int


@dataclass(frozen=True)
class FileOverview:
    """An overview of files.

    Attributes:
        n: Number of files, without those of rounds, which are the same again.
        shown: All of them; of very many those that failed or rejected most, and the slowest, in their order.
        slowest: Files that took longest, these first.
        n_failed: Number of failed files.
        failed: Failed files by their first reasons.
        most_kept: Filtered files of which most was kept, these first; all, if there are few.
        least_kept: Filtered files of which least was kept, these last; none, if there are few.
    """

    n: int
    shown: Sequence[FileFacts]
    slowest: Sequence[FileFacts]
    n_failed: int
    failed: Sequence[FailedFiles]
    most_kept: Sequence[FileFacts]
    least_kept: Sequence[FileFacts]


def overview_of(files: Iterable[FileFacts]) -> FileOverview:
    """Returns the overview of files, sorted by flow and name."""
    reasons, kept, n = _Reasons(), _Kept(), 0
    first, failed = list[tuple[int, FileFacts]](), list[tuple[int, FileFacts]]()
    rejecting = Most[tuple[int, FileFacts]](MAX_TABLE_ROWS // 2, lambda placed: placed[1].rejected)
    slowest = Most[tuple[int, FileFacts]](MAX_TABLE_ROWS, lambda placed: placed[1].seconds)
    for file in files:
        if file.status == FAILED:
            reasons.add(file)
        if is_round(file.flow):
            continue
        placed = (n, file)
        n += 1
        if n <= MAX_TABLE_ROWS:
            first.append(placed)
        if file.status == FAILED and len(failed) < MAX_TABLE_ROWS:
            failed.append(placed)
        if file.rejected:
            rejecting.add(placed)
        slowest.add(placed)
        kept.add(file)
    by_time = slowest.sorted()
    shown = first if n <= MAX_TABLE_ROWS else most_telling(failed, rejecting.sorted(), by_time, MAX_TABLE_ROWS)
    return FileOverview(
        n,
        [file for _, file in sorted(shown, key=lambda placed: placed[0])],
        [file for _, file in by_time[:MAX_SLOWEST] if file.seconds],
        reasons.n,
        reasons.found(),
        *kept.most_and_least(),
    )


def is_round(flow: str) -> bool:
    """Returns whether a flow is a round of another one, whose files and job are the same."""
    kind = kind_of_flow(flow)
    return kind is not None and kind.flow != flow


class _Reasons:
    """Failed files by flow and reason; names of few for each, and no more reasons than are shown."""

    def __init__(self) -> None:
        self.n = 0
        self._by_reason: dict[tuple[str, str], FailedFiles] = {}

    def add(self, file: FileFacts) -> None:
        self.n += 1
        key = (file.flow, same_reason(file.file, file.reason))
        known = self._by_reason.get(key)
        if known is None and len(self._by_reason) == MAX_REASONS:
            return
        known = known or FailedFiles(file.reason, file.flow, (), 0)
        names = known.names if known.n >= MAX_NAMES else (*known.names, file.file)
        self._by_reason[key] = FailedFiles(known.reason, known.flow, names, known.n + 1)

    def found(self) -> list[FailedFiles]:
        return list(self._by_reason.values())


class _Kept:
    """Filtered files of which most and least was kept."""

    def __init__(self) -> None:
        self._n = 0
        self._files: list[FileFacts] = []

    def add(self, file: FileFacts) -> None:
        if file.flow == "filter" and file.kept is not None and file.documents:
            self._n += 1
            self._files.append(file)
            if len(self._files) > MAX_TABLE_ROWS:
                self._files = [*self._sorted()[:MAX_KEPT_FILES], *self._sorted()[-MAX_KEPT_FILES:]]

    def most_and_least(self) -> tuple[list[FileFacts], list[FileFacts]]:
        by_share = self._sorted()
        if self._n <= 2 * MAX_KEPT_FILES:
            return by_share, []
        return by_share[:MAX_KEPT_FILES], by_share[-MAX_KEPT_FILES:]

    def _sorted(self) -> list[FileFacts]:
        return sorted(self._files, key=lambda file: (-(file.kept or 0) / file.documents, file.file))
