"""Running counts of a file that is being embedded."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlfilter_core.corpus.rejects import RejectsFile
from mlfilter_core.corpus.windows import Window
from mlfilter_core.embedding.committed import Rows
from mlfilter_core.tallies.histogram import WHOLE_NUMBERS, Histogram, histogram


class DuplicateIds:
    """Counts the documents of a file with the id of an earlier one.

    Hashes of eight bytes, instead of ids, limit the memory for a large file.
    """

    def __init__(self) -> None:
        self._hashes: list[NDArray[np.int64]] = []

    def add(self, ids: Sequence[Any]) -> None:
        """Adds ids: of all documents as text, or of all as bytes."""
        self._hashes.append(np.fromiter(map(hash, ids), np.int64, len(ids)))

    def count(self) -> int:
        """Returns the number of repeated ids."""
        hashes = np.concatenate(self._hashes) if self._hashes else np.zeros(0, np.int64)
        return len(hashes) - len(np.unique(hashes))


class EmbedCounts:
    """Counts over the windows of a file.

    Attributes:
        documents: Documents written.
        new_tokens: Tokens encoded by this run.
        out_of_memory: Number of batches that did not fit in memory and were divided.
        max_batch_tokens: Most tokens in one forward pass, as of the last window.
        document_tokens: Histogram of the tokens of a document.
    """

    def __init__(self) -> None:
        self.documents = 0
        self.new_tokens = 0
        self.out_of_memory = 0
        self.max_batch_tokens = 0
        self.document_tokens = Histogram(WHOLE_NUMBERS)
        self._blank = 0
        self._truncated = 0
        self._tokens = 0
        self._chunks = 0
        self._ids = DuplicateIds()

    def add(self, window: Window, rows: Rows, is_new: bool) -> None:
        """Adds a window.

        Args:
            window: The window, without the documents that were dropped.
            rows: Its embeddings.
            is_new: Whether this run encoded it.
        """
        n_tokens = int(rows.n_tokens.sum())
        self.documents += len(window.documents)
        self.new_tokens += n_tokens if is_new else 0
        self.out_of_memory += rows.out_of_memory
        self.max_batch_tokens = rows.max_batch_tokens
        self.document_tokens += histogram(rows.n_tokens, WHOLE_NUMBERS)
        self._blank += window.n_blank
        self._truncated += int(rows.is_cut.sum())
        self._tokens += n_tokens
        self._chunks += len(rows.embeddings)
        self._ids.add([document.id for document in window.documents])

    def summary(self, n_lines: int, rejects: RejectsFile, are_chunked: bool) -> dict[str, Any]:
        """Returns the counts of a whole file, as in its provenance and its report; of chunks only where they exist."""
        assert n_lines == self.documents + rejects.n_rejected + self._blank, "a line is unaccounted for"
        return {
            "lines": n_lines,
            "documents": self.documents,
            "rejected": rejects.n_rejected,
            "blank": self._blank,
            "truncated": self._truncated,
            "duplicate_ids": self._ids.count(),
            "tokens": self._tokens,
            **({"chunks": self._chunks} if are_chunked else {}),
            "out_of_memory": self.out_of_memory,
            "rejected_by_reason": dict(sorted(rejects.by_reason.items())),
        }
