"""Confidence intervals of the measures of agreement, by resampling the documents."""

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

from mlfilter_core.evaluation.agreement import Floats, MeasureOptions, Pairs, Places, weighted_measures

PERCENTILES = (2.5, 97.5)
BLOCK_ELEMENTS = 1 << 22  # elements of an array at a time: 32 MiB, and about ten such arrays exist at once


@dataclass(frozen=True)
class Interval:
    """A 95 % percentile interval.

    Attributes:
        low: Lower end; None where the measure is undefined in all resamples.
        high: Upper end; None likewise.
        undefined: Number of resamples left out because the measure is undefined, for example because all scores in
            the resample are equal.
    """

    low: float | None
    high: float | None
    undefined: int


def bootstrap(pairs: Pairs, documents: Places, options: MeasureOptions) -> dict[str, Interval]:
    """Returns the interval of each measure, from resampling documents with replacement.

    Args:
        pairs: The pairs of n rows.
        documents: int64 (n,), number of the document of each row, from 0 without gaps. A document with several rows,
            one for each of its languages, is drawn with all of them: they are not independent.
        options: The same seed gives the same intervals; `n_resamples` is at least 1.
    """
    n_documents = int(documents.max()) + 1
    pairs_of_documents = csr_array((np.ones(len(documents)), (documents, pairs.place)), shape=(n_documents, len(pairs)))
    rng = np.random.default_rng(options.seed)
    block = max(1, BLOCK_ELEMENTS // max(n_documents, len(pairs)))
    parts = []
    for start in range(0, options.n_resamples, block):
        n = min(block, options.n_resamples - start)
        drawn = rng.integers(n_documents, size=(n, n_documents)) + np.arange(n)[:, None] * n_documents
        times = np.bincount(drawn.ravel(), minlength=n * n_documents).reshape(n, n_documents)
        parts.append(weighted_measures(pairs, times @ pairs_of_documents, options))
    return {name: _interval(np.concatenate([part[name] for part in parts])) for name in parts[0]}


def _interval(values: Floats) -> Interval:
    defined = values[~np.isnan(values)]
    low, high = np.percentile(defined, PERCENTILES).tolist() if len(defined) else (None, None)
    return Interval(low, high, len(values) - len(defined))
