"""Reports of a million files in memory: compressed, some 70 bytes each instead of 1,500."""

import pickle
from array import array
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, Generic, overload
from zlib import compress, decompress

import numpy as np
from numpy.typing import NDArray

from mlfilter_core.work.workload import Report

BLOCK = 1024  # reports
# Blocks that are kept unpacked while the reports are read in the order of their files: as the files of a run end in
# about this order, those of few blocks take turns.
UNPACKED_BLOCKS = 16


class StoredReports(Sequence[Report], Generic[Report]):
    """Reports, in the order of their files; filled in any order, and then read."""

    def __init__(self) -> None:
        self._blocks: list[bytes] = []
        self._open: list[Report] = []
        self._places = array("q")  # of the files, in the order in which the reports came
        self._order: NDArray[np.intp] | None = None  # of the reports; None where some came since
        self._unpacked = lru_cache(maxsize=UNPACKED_BLOCKS)(self._unpack)

    def add(self, place: int, report: Report) -> None:
        """Adds the report of the file at a place in the order of all."""
        self._places.append(place)
        self._open.append(report)
        self._order = None
        if len(self._open) == BLOCK:
            self._blocks.append(compress(pickle.dumps(self._open, pickle.HIGHEST_PROTOCOL), 1))
            self._open = []

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> Report: ...
    @overload
    def __getitem__(self, index: slice) -> list[Report]: ...
    def __getitem__(self, index: int | slice) -> Report | list[Report]:
        ordered = self._ordered()[index]
        if isinstance(index, slice):
            return list(self._reports(ordered))
        return next(self._reports(np.array([ordered])))

    def __iter__(self) -> Iterator[Report]:
        ordered = self._ordered()
        for start in range(0, len(ordered), BLOCK):
            yield from self._reports(ordered[start : start + BLOCK])

    def __eq__(self, other: object) -> bool:
        return list(self) == list(other) if isinstance(other, Sequence) else NotImplemented

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (list(self),)

    def _ordered(self) -> NDArray[np.intp]:
        """Returns the reports, by when they came, in the order of their files."""
        if self._order is None:
            self._order = np.argsort(np.array(self._places, np.int64), kind="stable")
        return self._order

    def _reports(self, ordered: NDArray[np.intp]) -> Iterator[Report]:
        for came in map(int, ordered):
            block, row = divmod(came, BLOCK)
            yield self._open[row] if block == len(self._blocks) else self._unpacked(block)[row]

    def _unpack(self, block: int) -> list[Report]:
        reports: list[Report] = pickle.loads(decompress(self._blocks[block]))
        return reports
