"""What other thresholds would remove, and pairs of documents that are just similar enough for each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlfilter_core.deduplication.compare import first_rows
from mlfilter_core.deduplication.edges import ROUNDING
from mlfilter_core.deduplication.groups import documents_in, groups_of
from mlfilter_core.deduplication.settle import SettleRequest, document_at, edges_of

LEVELS = tuple(round(0.80 + 0.01 * i, 2) for i in range(20))  # thresholds that are searched for


@dataclass(frozen=True)
class Preview:
    """What one threshold would do.

    Attributes:
        threshold: Lowest cosine of duplicates.
        documents: Number of documents of the corpus.
        duplicates: Number of documents that it would remove.
        groups: Number of groups.
        edge: The two documents of the least similar pair that it takes for duplicates, as `document_at` shows them;
            empty where the next higher threshold takes the same pairs.
    """

    threshold: float
    documents: int
    duplicates: int
    groups: int
    edge: Sequence[Mapping[str, Any]]


def preview(request: SettleRequest) -> list[Preview]:
    """Returns what each of `LEVELS` would do, given the pairs of a search at the lowest.

    Raises:
        EmbeddingFileError: A file's rows are not divided.
        OSError: Reading failed.
    """
    starts = first_rows(request.compared.files, request.compared.divided)
    edges, _ = edges_of(request)
    found: list[Preview] = []
    n_above = 0
    for level in reversed(LEVELS):
        own = edges[edges.cosines >= level - ROUNDING]
        groups = groups_of(own, np.zeros(len(documents_in(own))))
        n_duplicates = int(groups.is_duplicate.sum())
        shown: list[Mapping[str, Any]] = []
        if len(own) > n_above:
            least = int(own.cosines.argmin())
            cosine = float(own.cosines[least])
            shown = [document_at(request, starts, int(row[least]), cosine) for row in (own.first, own.second)]
        n_above = len(own)
        n_groups = len(groups.rows) - n_duplicates
        found.append(Preview(level, int(starts[-1]), n_duplicates, n_groups, shown))
    return found[::-1]
