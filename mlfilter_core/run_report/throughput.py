"""Speed of the workers over the time of a run, from the times of its files."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mlfilter_core.run_report.facts import FileFacts, Rates

MAX_TIME_BINS = 120  # each about four pixels wide
BIN_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14_400, 43_200, 86_400)


def rates_of(files: Sequence[FileFacts]) -> Rates | None:
    """Returns documents and tokens per second over time; None where no file has its times.

    The documents of a file are spread evenly over its time.
    """
    timed = [file for file in files if file.started and file.seconds > 0 and file.worker]
    if not timed:
        return None
    started = min(file.started for file in timed)
    span = max(file.started + file.seconds for file in timed) - started
    bin_s = next((seconds for seconds in BIN_S if seconds * MAX_TIME_BINS >= span), BIN_S[-1])
    n_bins = int(span // bin_s) + 1
    documents: dict[str, NDArray[np.float64]] = {}
    tokens: dict[str, NDArray[np.float64]] = {}
    for file in sorted(timed, key=lambda file: file.worker):
        edges = started + bin_s * np.arange(n_bins + 1)
        first = int((file.started - started) // bin_s)
        last = min(n_bins, int((file.started + file.seconds - started) // bin_s) + 1)
        inside = np.clip(edges[first : last + 1], file.started, file.started + file.seconds)
        shares = np.diff(inside) / file.seconds
        for rates, n in ((documents, file.n_new), (tokens, file.n_new_tokens)):
            rates.setdefault(file.worker, np.zeros(n_bins))[first:last] += shares * n / bin_s
    has_tokens = any(rates.any() for rates in tokens.values())
    return Rates(started, bin_s, _rounded(documents), _rounded(tokens) if has_tokens else {})


def _rounded(rates: dict[str, NDArray[np.float64]]) -> dict[str, list[float]]:
    return {worker: [float(f"{value:.5g}") for value in values] for worker, values in rates.items()}
