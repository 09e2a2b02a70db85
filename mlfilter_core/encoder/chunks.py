"""Token ids of long texts to chunks, each with the special tokens and the prompt of its text."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from mlfilter_core.encoder.settings import Chunks
from mlfilter_core.errors import EncoderError

Tokenize = Callable[[Sequence[str]], Sequence[NDArray[np.int32]]]

# Texts after the prompt, by which its last token may be joined with the first of a text.
BEGINNINGS = ("a", "The", "1", " x", "\u4e2d")


class ChunkDivision:
    """Divides the token ids of texts.

    Chunk i of a text has the special tokens and the prompt of the text around tokens `i * step` to `i * step + room`
    of the rest. The first chunk is what truncation to `chunk_length` leaves.

    Attributes:
        chunk_length: Most tokens of a chunk, special tokens and prompt included.
        text_length: Most tokens of a text that are in its chunks, special tokens and prompt counted once.
    """

    def __init__(self, tokenize: Tokenize, chunk_length: int | None, chunks: Chunks, prompt: str) -> None:
        """Finds how many tokens of a chunk are special tokens and prompt.

        Args:
            tokenize: Returns the token ids of whole texts.
            chunk_length: Most tokens of a chunk; None if neither job nor model has a limit.
            chunks: The job's settings.
            prompt: Text before each document.

        Raises:
            EncoderError: No token of a document, or not more than the overlap, would fit in a chunk.
        """
        if chunk_length is None:
            raise EncoderError("params.chunks: the model has no maximum length; set tokens, such as {tokens: 512}")
        empty, one, prompted, *begun = tokenize(["", BEGINNINGS[0], prompt, *(prompt + text for text in BEGINNINGS)])
        self._n_after = len(empty) - _n_common(empty, one)
        self._prompted = prompted
        self._n_before = min(len(prompted) - self._n_after, *(_n_common(prompted, ids) for ids in begun))
        n_around = self._n_before + self._n_after
        step = chunk_length - n_around - chunks.overlap
        if step <= 0:
            raise EncoderError(
                f"params.chunks: of {chunk_length} tokens, {n_around} are special tokens and prompt, "
                f"and {chunks.overlap} overlap; raise tokens to {n_around + chunks.overlap + 1} or "
                "more, or lower overlap"
            )
        self._overlap = chunks.overlap
        self.chunk_length = chunk_length
        self.text_length = chunk_length + (chunks.most - 1) * step

    def divide(self, ids: NDArray[np.int32]) -> list[NDArray[np.int32]]:
        """Returns the chunks of one text, one at least, in their order.

        Args:
            ids: int32 (n_tokens,), at most `text_length`.
        """
        if len(ids) <= self.chunk_length:
            return [ids]
        # A text may be joined with the prompt where none of `BEGINNINGS` is: "//" after "query:" gives "://".
        n_before = min(self._n_before, _n_common(self._prompted, ids))
        before, after = ids[:n_before], ids[len(ids) - self._n_after :]
        rest = ids[n_before : len(ids) - self._n_after]
        room = self.chunk_length - n_before - self._n_after
        starts = range(0, len(rest) - self._overlap, room - self._overlap)
        return [np.concatenate([before, rest[start : start + room], after]) for start in starts]


def _n_common(one: NDArray[np.int32], other: NDArray[np.int32]) -> int:
    """Returns how many first tokens are equal."""
    n = min(len(one), len(other))
    differs = np.flatnonzero(one[:n] != other[:n])
    return int(differs[0]) if len(differs) else n
