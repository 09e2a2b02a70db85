"""Computes the progress of a run from its finished files and those in progress.

Knows nothing about how it is shown.
"""

import threading
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from flows.watching.speeds import Speeds, Straggler
from mlfilter_core.wording import duration
from mlfilter_core.work.division import Tasks
from mlfilter_core.work.progress import Progress
from mlfilter_core.work.workload import SKIPPED, FileReport

# Rates cover the last minute. The remaining time is estimated from five minutes, because files differ.
RATE_S, LEFT_S = 60, 300
# Without any progress for this long, the line says so, and the file systems are asked whether they answer.
STILL_S = 20.0
# All stages wait for the first batch. Later, those that wait alike would take turns as the bottleneck. Both arbitrary.
CLEAR_S, CLEARLY_LESS = 5.0, 0.7


@dataclass(frozen=True)
class UnderWay:
    """A file that a worker is processing.

    Attributes:
        worker: Name of the worker.
        progress: Progress of the file.
        seconds: Seconds since the worker began it.
    """

    worker: str
    progress: Progress
    seconds: float


@dataclass(frozen=True)
class Snapshot:
    """The progress of a run at one moment. Only `files` and `files_before` include files finished in earlier runs.

    Attributes:
        files: Number of files.
        files_before: Number of files finished in earlier runs.
        files_done: Number of files finished in this run.
        files_failed: Number of failed files.
        documents: Documents processed in this run, including files in progress.
        tokens: Tokens encoded in this run.
        rejected: Lines rejected in this run.
        share: Processed share of the bytes that this run has to process, from 0 to 1.
        documents_per_s: Rate over the last minute.
        tokens_per_s: Rate over the last minute.
        seconds_left: Estimate of the remaining time; None if there is nothing to base it on.
        out_of_memory: Number of batches that did not fit in memory.
        waited: Seconds that each stage waited for another, over all files.
        under_way: Files in progress, by file name.
        bottleneck: The stage that waited least, which is the one to speed up; None while this is not clear.
        is_waiting: Whether the run has no worker, as while its Slurm jobs are pending.
        still_s: Seconds since anything changed; 0 while there is no worker, or nothing left to do.
    """

    files: int
    files_before: int
    files_done: int
    files_failed: int
    documents: int
    tokens: int
    rejected: int
    share: float
    documents_per_s: float
    tokens_per_s: float
    seconds_left: float | None
    out_of_memory: int
    waited: Mapping[str, float]
    under_way: Sequence[UnderWay]
    bottleneck: str | None = None
    is_waiting: bool = False
    still_s: float = 0.0


class _Sizes:
    """The bytes of the tasks that have not ended, by name; 16 bytes for each of a million tasks."""

    def __init__(self, tasks: Tasks) -> None:
        hashes, sizes = np.empty(len(tasks), np.int64), np.empty(len(tasks), np.int64)
        for i, (task, size) in enumerate(tasks.with_sizes()):
            hashes[i], sizes[i] = hash(task.name), max(1, size)
        order = np.argsort(hashes)
        self._hashes, self._sizes = hashes[order], sizes[order]
        self.total = int(sizes.sum())

    def of(self, name: str) -> int:
        """Returns the bytes of a task; 0 where it has ended, or is none."""
        place = self._place(name)
        return 0 if place is None else int(self._sizes[place])

    def take(self, name: str) -> int:
        """Returns the bytes of a task that has just ended."""
        place, n_bytes = self._place(name), self.of(name)
        if place is not None:
            self._sizes[place] = 0
        return n_bytes

    def _place(self, name: str) -> int | None:
        place = int(np.searchsorted(self._hashes, hash(name)))
        return place if place < len(self._hashes) and self._hashes[place] == hash(name) else None


class RunProgress:
    """Adds up the progress that workers report for files and parts of files, and the reports of finished ones."""

    def __init__(self, n_files: int, tasks: Tasks, n_failed: int) -> None:
        """Takes the number of all files, the files and parts to process, and the number of files that failed before."""
        self._left = _Sizes(tasks)
        self._parts: dict[str, list[str]] = {}  # names of the parts of divided files
        self._file_of: dict[str, str] = {}
        for part in tasks.parts():
            self._parts.setdefault(part.relative, []).append(part.name)
            self._file_of[part.name] = part.relative
        self._n_files = n_files
        self._n_before = n_files - (len(tasks) - len(self._file_of) + len(self._parts)) - n_failed
        self._n_failed = n_failed
        self._all_bytes = max(1, self._left.total)
        self._done: Counter[str] = Counter()
        self._waited: Counter[str] = Counter()
        self._under_way: dict[str, tuple[str, Progress, float]] = {}
        self._started = time.monotonic()
        self._samples: deque[tuple[float, int, int, float]] = deque()  # time, documents, tokens, share
        self._bottleneck: str | None = None
        self._is_waiting = True
        self._moved: tuple[object, float] = None, self._started
        self._speeds = Speeds()
        self._lock = threading.Lock()

    def hear(self, worker: str, progress: Progress) -> None:
        """Takes the progress of a file from its worker."""
        with self._lock:
            known = self._under_way.get(progress.file)
            began = known[2] if known is not None and known[0] == worker else time.monotonic()
            self._under_way[progress.file] = worker, progress, began
            if self._left.of(progress.file):  # otherwise it has ended, and will not end again
                self._speeds.hear(worker, progress, time.monotonic())

    def have_workers(self, n_workers: int) -> None:
        """Takes the number of workers now."""
        self._is_waiting = n_workers == 0

    def finish(self, name: str, report: FileReport) -> None:
        """Takes the report of a finished file; one that was joined from its parts adds nothing but itself."""
        with self._lock:
            self._done["files"] += 1
            if name not in self._parts:
                self._add(name, report)

    def finish_part(self, name: str, report: FileReport) -> None:
        """Takes the report of a finished part of a file."""
        with self._lock:
            self._add(name, report)

    def fail(self, name: str) -> None:
        """Counts a file that failed, by its own name or that of a part; its other parts are not waited for."""
        with self._lock:
            file = self._file_of.get(name, name)
            for task in self._parts.get(file, [file]):
                self._end(task)
            self._under_way.pop(name, None)
            self._n_failed += 1

    def snapshot(self) -> Snapshot:
        """Returns the progress of the run now."""
        with self._lock:
            now = time.monotonic()
            under_way = [
                UnderWay(worker, progress, now - began) for worker, progress, began in self._under_way.values()
            ]
            totals = Counter(self._done)
            waited = Counter(self._waited)
            n_bytes = float(self._done["bytes"])
            for file in under_way:
                progress = file.progress
                totals.update(documents=progress.documents, tokens=progress.tokens, rejected=progress.rejected)
                totals.update(out_of_memory=progress.out_of_memory)
                waited.update(progress.waited)
                n_bytes += progress.share * self._left.of(progress.file)
            share = min(1.0, n_bytes / self._all_bytes)
            self._sample(now, totals["documents"], totals["tokens"], share)
            documents_per_s, tokens_per_s, _ = self._rates(RATE_S)
            share_per_s = self._rates(LEFT_S)[2]
            is_over = self._n_before + totals["files"] + self._n_failed >= self._n_files
            now_at = (*totals.values(), share, self._n_failed)
            if now_at != self._moved[0] or self._is_waiting or is_over:
                self._moved = now_at, now
            return Snapshot(
                files=self._n_files,
                files_before=self._n_before,
                files_done=totals["files"],
                files_failed=self._n_failed,
                documents=totals["documents"],
                tokens=totals["tokens"],
                rejected=totals["rejected"],
                share=share,
                documents_per_s=documents_per_s,
                tokens_per_s=tokens_per_s,
                seconds_left=(1 - share) / share_per_s if share_per_s > 0 and share < 1 else None,
                out_of_memory=totals["out_of_memory"],
                waited=dict(waited),
                under_way=sorted(under_way, key=lambda file: file.progress.file),
                bottleneck=self._find_bottleneck(waited),
                is_waiting=self._is_waiting,
                still_s=now - self._moved[1],
            )

    def stragglers(self) -> Sequence[Straggler]:
        """Returns the files that are far slower than the others, the slowest first."""
        with self._lock:
            return self._speeds.stragglers(time.monotonic())

    def _find_bottleneck(self, waited: Counter[str]) -> str | None:
        """Returns the stage that waited least; it changes only when another has waited much less."""
        if waited.total() < CLEAR_S:
            return self._bottleneck
        least = min(waited, key=lambda stage: waited[stage])
        if self._bottleneck is None or waited[least] < CLEARLY_LESS * waited[self._bottleneck]:
            self._bottleneck = least
        return self._bottleneck

    def _add(self, name: str, report: FileReport) -> None:
        self._end(name)
        if report.status == SKIPPED:
            return
        for count in ("documents", "tokens", "rejected", "out_of_memory"):
            self._done[count] += getattr(report, count, 0)
        self._waited.update(getattr(report, "waited", {}))

    def _end(self, name: str) -> None:
        self._under_way.pop(name, None)
        self._speeds.end(name)
        self._done["bytes"] += self._left.take(name)

    def _sample(self, now: float, documents: int, tokens: int, share: float) -> None:
        if not self._samples:
            self._samples.append((self._started, 0, 0, 0.0))
        self._samples.append((now, documents, tokens, share))
        while len(self._samples) > 2 and now - self._samples[1][0] > LEFT_S:
            self._samples.popleft()

    def _rates(self, seconds: float) -> tuple[float, float, float]:
        """Returns documents, tokens and shares per second, over the last seconds."""
        now, *last = self._samples[-1]
        began, *first = next(
            sample for sample in self._samples if now - sample[0] <= seconds or sample is self._samples[-2]
        )
        passed = now - began
        # Not below 0: uncommitted documents are lost when a worker dies.
        rates = [
            max(0.0, (after - before) / passed) if passed > 0 else 0.0
            for before, after in zip(first, last, strict=True)
        ]
        return rates[0], rates[1], rates[2]


def describe(snapshot: Snapshot) -> str:
    """Returns a snapshot as one line: `3 of 9 files, 12,345 documents, 950 documents/s, 3 h 12 min left`."""
    parts = [f"{snapshot.files_before + snapshot.files_done:,} of {snapshot.files:,} files"]
    if snapshot.files_failed:
        parts.append(f"{snapshot.files_failed:,} failed")
    if not (snapshot.files_done or snapshot.under_way or snapshot.documents or snapshot.rejected):
        return ", ".join([*parts, "waiting for the first worker"])
    parts.append(f"{snapshot.documents:,} documents")
    if snapshot.rejected:
        parts.append(f"{snapshot.rejected:,} rejected")
    parts.append(f"{_rounded(snapshot.documents_per_s)} documents/s")
    if snapshot.tokens:
        parts.append(f"{_rounded(snapshot.tokens_per_s)} tokens/s")
    if snapshot.seconds_left is not None:
        parts.append(f"{duration(snapshot.seconds_left)} left")
    if snapshot.still_s >= STILL_S:
        parts.append(f"no progress for {duration(snapshot.still_s)}")
    if snapshot.bottleneck is not None:
        parts.append(f"{snapshot.bottleneck} is the bottleneck")
    return ", ".join(parts)


def _rounded(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}"
