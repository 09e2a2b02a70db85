"""Turns the documents of windows into rows; documents that cannot be encoded become rejected lines.

Knows nothing about files and stages.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mlfilter_core.corpus.windows import Window
from mlfilter_core.embedding.committed import Rows
from mlfilter_core.embedding.embed_request import EmbedRequest

if TYPE_CHECKING:
    from mlfilter_core.encoder.encoder import EncodedTexts, Encoder, TokenizedTexts


class WindowEncoder:
    """Tokenizes and encodes one window, or several that share the forward passes."""

    def __init__(self, encoder: "Encoder", request: EmbedRequest) -> None:
        """Takes the encoder and the request of the run."""
        self._encoder = encoder
        self._request = request

    @property
    def n_begun_ahead(self) -> int:
        """Number of later calls of `encode` that should precede `rows`, so that a GPU has work meanwhile."""
        return int(self._encoder.device.type == "cuda")

    def tokenize(self, windows: Sequence[Window]) -> "list[TokenizedTexts]":
        """Returns the tokens of each window's documents.

        Rejects documents without a token, and those with too many where they may not be truncated.
        """
        encoder = self._encoder
        tokens = encoder.tokenize([document.text for window in windows for document in window.documents])
        limit = "params.chunks allows" if encoder.settings.chunks else "params.max_length"
        too_long = f"more than {limit}, {encoder.max_text_length} tokens, and truncation is off"
        of_windows = []
        for window, own in zip(windows, tokens.divided([len(each.documents) for each in windows]), strict=True):
            own = _reject(window, own, own.n_tokens == 0, "no_tokens", "the text has no token of this encoder")
            if not self._request.encoder.truncate:
                own = _reject(window, own, own.is_cut, "too_many_tokens", too_long)
            of_windows.append(own)
        return of_windows

    def encode(
        self,
        tokens: "Sequence[TokenizedTexts]",
        max_batch_tokens: int | None = None,
        on_batch: Callable[[int, int], None] | None = None,
    ) -> "EncodedTexts":
        """Runs the model over the tokens of all windows; a GPU continues after the return.

        Args:
            tokens: Result of `tokenize`.
            max_batch_tokens: Most tokens in one forward pass; None takes the encoder's own number.
            on_batch: Called after each batch with its number of chunks and of tokens.
        """
        from mlfilter_core.encoder.encoder import TokenizedTexts

        joined = tokens[0] if len(tokens) == 1 else TokenizedTexts.joined(tokens)
        return self._encoder.encode(joined, self._request.batch_size, max_batch_tokens, on_batch)

    def rows(self, windows: Sequence[Window], tokens: "Sequence[TokenizedTexts]", texts: "EncodedTexts") -> list[Rows]:
        """Returns the rows of each window, and rejects documents that do not fit in memory; waits for the GPU.

        Args:
            windows: The windows.
            tokens: Result of `tokenize`.
            texts: Result of `encode`.
        """
        ends = np.cumsum([len(own.input_ids) for own in tokens])[:-1]
        embeddings, fits = np.split(texts.embeddings(), ends), np.split(texts.fits, ends)
        rows = []
        for i, window in enumerate(windows):
            own, kept = self._without_misfits(window, tokens[i], fits[i])
            with np.errstate(over="ignore"):  # whoever writes the rows checks that they are finite
                stored = embeddings[i][kept].astype(self._request.rows_dtype, copy=False)
            n_out_of_memory = 0 if i else texts.n_out_of_memory  # so that the sum over the windows is right
            columns = (own.n_tokens, own.n_chunks, own.is_cut)
            rows.append(Rows(stored, *columns, n_out_of_memory, texts.max_batch_tokens))
        return rows

    def _without_misfits(
        self, window: Window, tokens: "TokenizedTexts", fits: NDArray[np.bool_]
    ) -> "tuple[TokenizedTexts, NDArray[np.bool_] | slice]":
        """Returns the tokens of the documents that fit in memory, and which chunks are theirs."""
        if fits.all():
            return tokens, slice(None)
        detail = f"the memory of {self._encoder.device} does not suffice for this document alone"
        do_fit = np.logical_and.reduceat(fits, np.cumsum(tokens.n_chunks) - tokens.n_chunks)
        return _reject(window, tokens, ~do_fit, "out_of_memory", detail), np.repeat(do_fit, tokens.n_chunks)


def _reject(
    window: Window, tokens: "TokenizedTexts", rejected: NDArray[np.bool_], reason: str, detail: str
) -> "TokenizedTexts":
    """Moves documents of a window to its rejected lines; returns the tokens of the others."""
    if not rejected.any():
        return tokens
    window.drop(np.flatnonzero(rejected).tolist(), reason, detail)
    return tokens.select(np.flatnonzero(~rejected))
