"""One row for each file and flow, from the logs of all runs and from what lies on disk."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import overload

import numpy as np
from numpy.typing import NDArray

from mlfilter_core.files.task_files import PackedNames
from mlfilter_core.run_report.facts import FileFacts
from mlfilter_core.run_report.run_files import DONE, FAILED, SKIPPED, STATES, RunFiles
from mlfilter_core.run_report.run_records import RunRecord
from mlfilter_core.verification.outputs import Outputs

# Names are compared by hashes of 64 bits: two of a million are the same once in some ten million reports.
Hashes = NDArray[np.int64]
Places = NDArray[np.int64]
_DONE, _SKIPPED, _FAILED = (STATES.index(state) for state in (DONE, SKIPPED, FAILED))


class FileRows(Sequence[FileFacts]):
    """Rows of files. Each is read from the log of its run when it is asked for."""

    def __init__(self, sources: Sequence[Sequence[FileFacts]], chosen: Places) -> None:
        """Takes sequences of rows, and (n, 2) the rows: places of their sequences, and places in these."""
        self._sources = sources
        self._chosen = chosen

    def __len__(self) -> int:
        return len(self._chosen)

    @overload
    def __getitem__(self, index: int) -> FileFacts: ...
    @overload
    def __getitem__(self, index: slice) -> list[FileFacts]: ...
    def __getitem__(self, index: int | slice) -> FileFacts | list[FileFacts]:
        if isinstance(index, slice):
            return list(FileRows(self._sources, self._chosen[index]))
        source, place = map(int, self._chosen[index])
        return self._sources[source][place]

    def __iter__(self) -> Iterator[FileFacts]:
        return (self[i] for i in range(len(self)))

    def __eq__(self, other: object) -> bool:
        return list(self) == list(other) if isinstance(other, Sequence) else NotImplemented


class RecordedFiles:
    """The files that runs recorded, each with the row of the latest run that did something with it.

    A run that skipped a file found it finished, even if an earlier run had failed.
    """

    def __init__(self, records: Sequence[RunRecord]) -> None:
        """Takes the runs, the latest first."""
        self._runs = [record.files for record in records]
        by_flow: dict[str, list[int]] = {}
        for i, record in enumerate(records):
            by_flow.setdefault(record.run.flow, []).append(i)
        self._chosen = {flow: _chosen(self._runs, own) for flow, own in by_flow.items()}
        self._finished = np.unique(self._outputs())

    def n_failed(self) -> Mapping[str, int]:
        """Returns the number of failed files by flow."""
        return {
            flow: sum(int((files.states[places] == _FAILED).sum()) for files, places in self._by_run(flow))
            for flow in sorted(self._chosen)
        }

    def are_finished(self, outputs: Outputs) -> NDArray[np.bool_]:
        """Returns for each output, relative to the output folder, whether it is that of a recorded, finished file."""
        return np.isin(_hashes(outputs.paths), self._finished)

    def with_others(self, others: Mapping[str, Sequence[FileFacts]]) -> FileRows:
        """Returns all rows, sorted by flow and file, given those of other files by flow."""
        names = [files.names for files in self._runs]
        names += [PackedNames(row.file for row in rows) for rows in others.values()]
        rows = [np.zeros((0, 2), np.int64)]
        for flow in sorted({*self._chosen, *others}):
            own = self._chosen.get(flow, rows[0])
            if flow in others:
                places = np.arange(len(others[flow]))
                source = np.full_like(places, len(self._runs) + list(others).index(flow))
                own = np.concatenate([own, np.stack([source, places], axis=1)])
            rows.append(_sorted(own, names))
        return FileRows([*self._runs, *others.values()], np.concatenate(rows))

    def _outputs(self) -> Hashes:
        found = [np.zeros(0, np.int64)]
        for flow in self._chosen:
            for files, places in self._by_run(flow):
                found.append(files.outputs[places[files.states[places] != _FAILED]])
        return np.concatenate(found)

    def _by_run(self, flow: str) -> Iterator[tuple[RunFiles, Places]]:
        """Yields the runs with rows of a flow, and the places of these rows."""
        runs, places = self._chosen[flow].T
        for run in np.unique(runs).tolist():
            yield self._runs[run], places[runs == run]


def _chosen(runs: Sequence[RunFiles], own: Sequence[int]) -> Places:
    """Returns (n, 2) the rows of the files of some runs, the latest first: places of the runs, and of their rows."""
    rows = np.concatenate([np.stack([np.full(len(runs[i]), i), np.arange(len(runs[i]))], axis=1) for i in own])
    n = len(rows)
    if not n:
        return rows
    hashes = np.concatenate([_hashes(runs[i].names) for i in own])
    order = np.argsort(hashes, kind="stable")  # the rows of a file stand together, the latest first
    states, places = np.concatenate([runs[i].states for i in own])[order], np.arange(n)
    is_first = np.append(True, np.diff(hashes[order]) != 0)
    starts = np.flatnonzero(is_first)
    was_skipped = (states[starts] == _SKIPPED)[np.cumsum(is_first) - 1]
    # Of a file that the latest run skipped: the latest that finished it, otherwise the earliest that skipped it.
    ranks = np.where(was_skipped & (states == _SKIPPED), 2 * n - places, places)
    ranks = np.where(was_skipped & (states == _FAILED), 3 * n, ranks)
    best = np.minimum.reduceat(ranks, starts)
    return np.asarray(rows[np.sort(order[np.where(best < n, best, 2 * n - best)])])


def _sorted(rows: Places, names: Sequence[PackedNames]) -> Places:
    """Returns the same rows, sorted by name. Those of a run that has ended are, unless files failed."""
    own = (names[source][place] for source, place in zip(rows[:, 0], rows[:, 1], strict=True))
    if all(one <= other for one, other in pairwise(own)):
        return rows
    known = [names[source][place] for source, place in zip(rows[:, 0], rows[:, 1], strict=True)]
    return rows[sorted(range(len(rows)), key=known.__getitem__)]


def _hashes(names: PackedNames) -> Hashes:
    return np.fromiter(map(hash, names), np.int64, len(names))
