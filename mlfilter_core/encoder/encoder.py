"""Texts to embeddings: tokenized, encoded in batches, in smaller ones once memory runs out.

Knows nothing about files.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mlfilter_core.encoder.batching import plan_batches
from mlfilter_core.encoder.chunks import ChunkDivision
from mlfilter_core.encoder.forward_pass import ForwardPass
from mlfilter_core.encoder.long_texts import TruncatingTokenizer
from mlfilter_core.encoder.model_properties import ModelProperties
from mlfilter_core.encoder.settings import Chunks, EncoderSettings

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TokenizedTexts:
    """Texts as token ids, special tokens and prompt included.

    Attributes:
        input_ids: One int32 array of at most `max_length` tokens for each chunk. A text is one chunk, unless the
            encoder divides long texts; the chunks of a text follow one another.
        n_tokens: int32 (n_texts,), tokens of each text; those in two chunks are counted once.
        is_cut: bool (n_texts,), whether the text has more tokens than that.
        n_chunks: int32 (n_texts,), chunks of each text.
    """

    input_ids: list[NDArray[np.int32]]
    n_tokens: NDArray[np.int32]
    is_cut: NDArray[np.bool_]
    n_chunks: NDArray[np.int32]

    def select(self, rows: NDArray[np.intp]) -> "TokenizedTexts":
        """Returns some of the texts, in the order of `rows`."""
        ends = np.cumsum(self.n_chunks)
        input_ids = [ids for row in rows for ids in self.input_ids[ends[row] - self.n_chunks[row] : ends[row]]]
        return TokenizedTexts(input_ids, self.n_tokens[rows], self.is_cut[rows], self.n_chunks[rows])

    def divided(self, sizes: Sequence[int]) -> "list[TokenizedTexts]":
        """Returns consecutive texts of these numbers, which add up to all."""
        if len(sizes) == 1:
            return [self]
        ends = np.cumsum(sizes)
        return [self.select(np.arange(end - size, end)) for size, end in zip(sizes, ends, strict=True)]

    @staticmethod
    def joined(parts: "Sequence[TokenizedTexts]") -> "TokenizedTexts":
        """Returns the texts of all parts, one part after another."""
        return TokenizedTexts(
            [ids for part in parts for ids in part.input_ids],
            np.concatenate([part.n_tokens for part in parts]),
            np.concatenate([part.is_cut for part in parts]),
            np.concatenate([part.n_chunks for part in parts]),
        )


class EncodedTexts:
    """Embeddings that a GPU may still be computing.

    Attributes:
        fits: bool (n_chunks,), false if a chunk alone does not fit in memory; its embedding is 0.
        n_out_of_memory: Number of batches that did not fit in memory and were divided.
        max_batch_tokens: Most tokens in one forward pass, for the texts after these.
    """

    def __init__(
        self, embeddings: torch.Tensor, fits: NDArray[np.bool_], n_out_of_memory: int, max_batch_tokens: int
    ) -> None:
        """Starts to copy float32 (n_chunks, dim) from its device."""
        self.fits = fits
        self.n_out_of_memory = n_out_of_memory
        self.max_batch_tokens = max_batch_tokens
        self._copied: torch.cuda.Event | None = None
        if embeddings.device.type == "cuda":
            on_host = torch.empty(embeddings.shape, pin_memory=True).copy_(embeddings, non_blocking=True)
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record(torch.cuda.current_stream(embeddings.device))
            self._embeddings = on_host
        else:
            self._embeddings = embeddings.cpu()

    def embeddings(self) -> NDArray[np.float32]:
        """Returns float32 (n_chunks, dim), row i is chunk i; waits for the GPU."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._embeddings.numpy()


class Encoder:
    """An encoder on a device. Make one with `mlfilter_core.encoder.loading.load_encoder`.

    Attributes:
        settings: The job's settings.
        forward_pass: The model.
        device: Device of the model.
        dim: Width of an embedding.
        max_length: Most tokens of a document, or of a chunk; None if neither job nor model has a limit.
        pooling: Pooling modes, `cls+mean` for two side by side.
        is_normalized: Whether the model scales its embeddings to unit length.
        prompt: Text before each document.
        max_batch_tokens: Most tokens in one forward pass, padding included; less once memory ran out.
        why_max_batch_tokens: Reason for that number.
        warnings: What may be wrong with the model's files.
        special_tokens: The tokenizer's special tokens, as text.
        max_text_length: Most tokens of a document, in all its chunks; None as for `max_length`.
    """

    def __init__(
        self,
        settings: EncoderSettings,
        tokenizer: Any,
        forward_pass: ForwardPass,
        max_batch_tokens: int,
        why_max_batch_tokens: str,
        warnings: Sequence[str] = (),
    ) -> None:
        properties = forward_pass.properties
        self.settings = settings
        self.forward_pass = forward_pass
        self.device = forward_pass.device
        self.dim = properties.dim
        self.max_length = properties.max_length
        self.pooling = properties.pooling
        self.is_normalized = properties.is_normalized
        self.prompt = properties.prompt
        self.max_batch_tokens, self.why_max_batch_tokens = max_batch_tokens, why_max_batch_tokens
        self.warnings = tuple(warnings)
        self.special_tokens: tuple[str, ...] = tuple(tokenizer.all_special_tokens)
        self._division = _division(tokenizer, properties, settings.chunks) if settings.chunks else None
        self.max_text_length = self._division.text_length if self._division else self.max_length
        self._truncating = TruncatingTokenizer(tokenizer, self.max_text_length)

    def __str__(self) -> str:
        """Device, attention and batch size, for the log."""
        return (
            f"{self.arithmetic()}, batches of at most {self.max_batch_tokens} tokens ({self.why_max_batch_tokens})"
            + (", compiled" if self.forward_pass.is_compiled else "")
            + (", texts of one length in a batch" if self.forward_pass.depends_on_padding else "")
            + (", with code that the model ships (trust_remote_code)" if self.settings.trust_remote_code else "")
        )

    def arithmetic(self) -> str:
        """Returns dtype, device and attention, for messages."""
        made = self.provenance()
        how = f"{made['attention']} attention" if self.forward_pass.engine is None else "by OpenVINO"
        return f"{made['compute_dtype']} on {self.device}, {how}"

    def lengths(self) -> str:
        """Returns the most tokens of a document, and its division into chunks, for messages."""
        chunks = self.settings.chunks
        if chunks is None:
            return f"at most {self.max_length} tokens"
        return f"at most {chunks.most} chunks of {self.max_length} tokens, {chunks.overlap} of them shared"

    def provenance(self) -> dict[str, Any]:
        """The facts of the loaded model, recorded in every file of embeddings."""
        return {
            "dim": self.dim,
            "max_length": self.max_length,
            "pooling": self.pooling,
            "is_normalized": self.is_normalized,
            "prompt": self.prompt,
            "device": self.device.type,
            "compute_dtype": str(self.forward_pass.dtype).removeprefix("torch."),
            "attention": self.forward_pass.attention,
            "is_compiled": self.forward_pass.is_compiled,
            "max_batch_tokens": self.max_batch_tokens,
            "why_max_batch_tokens": self.why_max_batch_tokens,
            **({} if self._division is None else {"max_text_length": self.max_text_length}),
        }

    def gpu_memory_bytes(self) -> int:
        """Returns the GPU memory that PyTorch has reserved; 0 without a GPU."""
        return torch.cuda.memory_reserved(self.device) if self.device.type == "cuda" else 0

    def tokenize(self, texts: Sequence[str]) -> TokenizedTexts:
        """Returns the token ids that the model gets for each text or chunk, prompt included."""
        input_ids, is_cut = self._truncating.tokenize([self.prompt + text for text in texts])
        n_tokens = _lengths(input_ids)
        if self._division is None:
            return TokenizedTexts(input_ids, n_tokens, is_cut, np.ones(len(texts), np.int32))
        divided = [self._division.divide(ids) for ids in input_ids]
        chunks = [chunk for text in divided for chunk in text]
        return TokenizedTexts(chunks, n_tokens, is_cut, _lengths(divided))

    @torch.inference_mode()
    def encode(
        self,
        tokenized: TokenizedTexts,
        max_batch_documents: int | None = None,
        max_batch_tokens: int | None = None,
        on_batch: Callable[[int, int], None] | None = None,
    ) -> EncodedTexts:
        """Runs the model.

        A batch that does not fit in memory is divided; later batches are as small as its halves.

        Args:
            tokenized: Result of `tokenize`.
            max_batch_documents: Most chunks in one forward pass; None sets no limit.
            max_batch_tokens: Most tokens in one; None takes the encoder's own number. The last bits of an
                embedding depend on it.
            on_batch: Called after each batch with its number of chunks and of tokens.
        """
        embeddings = torch.zeros((len(tokenized.input_ids), self.dim), device=self.device)
        fits = np.ones(len(embeddings), np.bool_)
        n_out_of_memory = 0
        limit = max_batch_tokens or self.max_batch_tokens
        if self.forward_pass.engine is not None:  # a batch is work for all cores, and each takes a few texts of it
            max_batch_documents, limit = None, self.max_batch_tokens
        n_tokens, padded_length = _lengths(tokenized.input_ids), self.forward_pass.padded_length
        lengths = n_tokens if padded_length is None else np.full_like(n_tokens, padded_length)
        kinds = self.forward_pass.kinds(lengths)

        def planned(some: NDArray[np.intp]) -> list[NDArray[np.intp]]:
            own = None if kinds is None else kinds[some]
            return [some[batch] for batch in plan_batches(lengths[some], max_batch_documents, limit, own)]

        batches = planned(np.arange(len(lengths)))
        while batches:
            rows = batches.pop(0)
            encoded = self.forward_pass.run_if_it_fits([tokenized.input_ids[row] for row in rows])
            if encoded is not None:
                embeddings[self.forward_pass.to_device(torch.from_numpy(rows))] = encoded
                if on_batch is not None:
                    on_batch(len(rows), int(n_tokens[rows].sum()))
            elif len(rows) == 1:
                fits[rows] = False
            else:
                n_out_of_memory += 1
                limit = len(rows) // 2 * int(lengths[rows].max())
                self._lower_max_batch_tokens(limit)
                batches = planned(np.concatenate([rows, *batches]))
        return EncodedTexts(embeddings, fits, n_out_of_memory, limit)

    def _lower_max_batch_tokens(self, max_batch_tokens: int) -> None:
        self.max_batch_tokens, self.why_max_batch_tokens = max_batch_tokens, "halved, since memory ran out"
        _log.warning("out of memory: batches have at most %d tokens from now on", max_batch_tokens)


def _division(tokenizer: Any, properties: ModelProperties, chunks: Chunks) -> ChunkDivision:
    whole = TruncatingTokenizer(tokenizer, None)
    return ChunkDivision(lambda texts: whole.tokenize(texts)[0], properties.max_length, chunks, properties.prompt)


def _lengths(items: Sequence[Any]) -> NDArray[np.int32]:
    return np.fromiter(map(len, items), np.int32, len(items))
