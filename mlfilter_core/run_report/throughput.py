"""Speed of the workers over the time of a run, from the times of its files."""

from array import array
from collections.abc import Iterable

import numpy as np

from mlfilter_core.run_report.facts import FileFacts, Rates

MAX_TIME_BINS = 120  # each about four pixels wide
BIN_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14_400, 43_200, 86_400)


CHUNK = 4096  # files at a time; arrays of this number times the bins


class TimedFiles:
    """The times of files, 36 bytes each."""

    def __init__(self) -> None:
        self._workers: dict[str, int] = {}
        self._worker = array("i")
        self._facts = array("d")  # start, seconds, documents, tokens of each

    def add(self, file: FileFacts) -> None:
        """Adds a file, if its times are known."""
        if file.started and file.seconds > 0 and file.worker:
            self._worker.append(self._workers.setdefault(file.worker, len(self._workers)))
            self._facts.extend((file.started, file.seconds, file.n_new, file.n_new_tokens))

    def rates(self) -> Rates | None:
        """Returns documents and tokens per second over time; None where no file has its times.

        The documents of a file are spread evenly over its time.
        """
        if not self._worker:
            return None
        workers = np.array(self._worker)
        starts, seconds, documents, tokens = np.array(self._facts).reshape(-1, 4).T
        started, span = starts.min(), (starts + seconds).max() - starts.min()
        bin_s = next((length for length in BIN_S if length * MAX_TIME_BINS >= span), BIN_S[-1])
        n_bins = int(span // bin_s) + 1
        edges = started + bin_s * np.arange(n_bins + 1)
        sums = np.zeros((2, len(self._workers), n_bins))
        for first in range(0, len(workers), CHUNK):
            own = slice(first, first + CHUNK)
            begins, lasts = starts[own, None], seconds[own, None]
            shares = np.diff(np.clip(edges, begins, begins + lasts)) / lasts
            for rates, n in zip(sums, (documents, tokens), strict=True):
                np.add.at(rates, workers[own], shares * n[own, None] / bin_s)
        by_worker = [
            {name: [float(f"{value:.5g}") for value in rates[place]] for name, place in sorted(self._workers.items())}
            for rates in sums
        ]
        return Rates(float(started), bin_s, by_worker[0], by_worker[1] if sums[1].any() else {})


def rates_of(files: Iterable[FileFacts]) -> Rates | None:
    """Returns the rates of files, as `TimedFiles.rates`."""
    timed = TimedFiles()
    for file in files:
        timed.add(file)
    return timed.rates()
