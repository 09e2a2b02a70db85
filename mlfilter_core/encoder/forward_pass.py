"""The forward pass of a model: a batch of token ids to embeddings.

Knows nothing about texts, nor about how documents are grouped into batches.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling
from torch.nn.functional import normalize

from mlfilter_core.compute.devices import give_back_freed_memory, is_out_of_memory
from mlfilter_core.encoder.batching import plan_batches
from mlfilter_core.encoder.model_properties import ModelProperties
from mlfilter_core.encoder.openvino_engine import PIECE_TOKENS, OpenVinoEngine

Batch = list[NDArray[np.int32]]


class ForwardPass:
    """A model that runs on batches of token ids.

    Attributes:
        modules: The transformer of sentence-transformers, then what follows it: pooling, dense layers, normalization.
        model: The transformers model inside the first module.
        properties: Properties of the model.
        device: Device of the model.
        padded_length: Length that every text is padded to; None pads to the longest of the batch.
        pad_token_id: Token of the padding.
        is_unpadded: Whether the texts of a batch lie one after another in one row, without padding.
        depends_on_padding: Whether padding changes an embedding, so that a batch may have texts of one length only.
        is_compiled: Whether torch.compile generated the code.
        engine: What computes the first modules in place of PyTorch; None for PyTorch itself.
    """

    def __init__(
        self, model: SentenceTransformer, properties: ModelProperties, device: torch.device, pad_to_max_length: bool
    ) -> None:
        self.modules = list(model)
        self.model = model[0].model
        self.properties = properties
        self.device = device
        self.padded_length = properties.max_length if pad_to_max_length else None
        self.pad_token_id: int = model[0].tokenizer.pad_token_id
        self.is_unpadded = False
        self.depends_on_padding = False
        self.is_compiled = False
        self.engine: OpenVinoEngine | None = None
        self._has_token_types = "token_type_ids" in model[0].tokenizer.model_input_names

    @property
    def attention(self) -> str:
        """Name of the attention: `unpadded`, `openvino`, or one of transformers' own."""
        if self.engine is not None:
            return "openvino"
        return "unpadded" if self.is_unpadded else str(self.model.config._attn_implementation)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the transformer."""
        return self.model.dtype  # type: ignore[no-any-return]

    def until_pooling(self) -> list[torch.nn.Module]:
        """Returns the modules up to the pooling."""
        place = next((i for i, module in enumerate(self.modules) if isinstance(module, Pooling)), len(self.modules) - 1)
        return self.modules[: place + 1]

    def kinds(self, n_tokens: NDArray[np.int32]) -> NDArray[Any] | None:
        """Returns what the texts of a batch have to share, for `plan_batches`; None if nothing."""
        if self.engine is not None:
            return None
        if self.depends_on_padding:
            return n_tokens
        limit = self.properties.long_positions
        return None if limit is None else n_tokens > limit

    @torch.inference_mode()
    def run(self, batch: Batch) -> torch.Tensor:
        """Returns float32 (n_texts, dim) on the device."""
        if self.engine is not None:
            return self._run_in_pieces(batch, self.engine)
        features = {
            name: self.to_device(value) if isinstance(value, torch.Tensor) else value
            for name, value in self._features(batch).items()
        }
        features = self.modules[0]({**features, **self.properties.prompt_features})
        if "token_embeddings" in features:
            features["token_embeddings"] = features["token_embeddings"].float()
        return self._from(1, features)

    def _run_in_pieces(self, batch: Batch, engine: OpenVinoEngine) -> torch.Tensor:
        lengths = np.fromiter(map(len, batch), np.int32, len(batch))
        places = plan_batches(lengths, None, PIECE_TOKENS, kinds=lengths)
        pieces = [np.array([batch[row] for row in rows], np.int64) for rows in places]
        pooled = torch.cat([each.clone() for each in engine.run(pieces)])
        embeddings = pooled[torch.from_numpy(np.argsort(np.concatenate(places)))]
        return self._from(engine.n_modules, {"sentence_embedding": embeddings})

    def _from(self, place: int, features: dict[str, Any]) -> torch.Tensor:
        """Returns the embeddings that the modules from a place on make of features."""
        for module in self.modules[place:]:
            features = module(features)
        embeddings: torch.Tensor = features["sentence_embedding"][:, : self.properties.dim]
        return normalize(embeddings, dim=1) if self.properties.is_normalized_again else embeddings

    def run_if_it_fits(self, batch: Batch) -> torch.Tensor | None:
        """Returns float32 (n_texts, dim) on the device; None if the batch does not fit in memory."""
        try:
            return self.run(batch)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        give_back_freed_memory(self.device)  # not earlier: the error's traceback refers to tensors
        return None

    def to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        """Returns a tensor on the device; a copy to a GPU is asynchronous."""
        if self.device.type == "cuda":  # only copies from pinned memory are
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)

    def _features(self, batch: Batch) -> dict[str, Any]:
        return self._in_one_row(batch) if self.is_unpadded else self.padded(batch)

    def _in_one_row(self, batch: Batch) -> dict[str, Any]:
        """Returns (1, n_tokens) features, and the bounds of the texts, which sentence-transformers' pooling reads."""
        lengths = np.fromiter(map(len, batch), np.int64, len(batch))
        ends = np.cumsum(lengths)
        starts = ends - lengths
        numbers = np.repeat(np.arange(len(batch)), lengths)
        input_ids = np.concatenate(batch).astype(np.int64)
        bounds = torch.from_numpy(np.append(starts, ends[-1]).astype(np.int32))
        return {
            **self._token_features(torch.from_numpy(input_ids[None])),
            "position_ids": torch.from_numpy(self._positions(input_ids, starts, lengths)[None]),
            "seq_idx": torch.from_numpy(numbers.astype(np.int32)[None]),
            **{"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds},
            **{"max_length_q": int(lengths.max()), "max_length_k": int(lengths.max())},
        }

    def _positions(
        self, input_ids: NDArray[np.int64], starts: NDArray[np.int64], lengths: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Returns the position of each token in its text, (n_tokens,).

        Models with a padding position, such as RoBERTa, count from the one after it, and leave out tokens that are
        literally the padding token: transformers' `create_position_ids_from_input_ids`.
        """
        padding = self.properties.padding_position
        is_counted = np.ones(len(input_ids), np.bool_) if padding is None else input_ids != padding
        counted = np.cumsum(is_counted)
        before = np.repeat(counted[starts] - is_counted[starts], lengths)
        positions: NDArray[np.int64] = counted - before
        return positions - 1 if padding is None else positions * is_counted + padding

    def padded(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Returns (n_texts, padded length) features."""
        width = self.padded_length or max(map(len, batch))
        input_ids = np.full((len(batch), width), self.pad_token_id, np.int64)
        attention_mask = np.zeros((len(batch), width), np.int64)
        # On the right, even if the tokenizer pads on the left: absolute positions then count from the text's first
        # token, whatever the batch. The pooling modules use the mask.
        for row, ids in enumerate(batch):
            input_ids[row, : len(ids)] = ids
            attention_mask[row, : len(ids)] = 1
        return {
            **self._token_features(torch.from_numpy(input_ids)),
            "attention_mask": torch.from_numpy(attention_mask),
        }

    def _token_features(self, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        token_types = {"token_type_ids": torch.zeros_like(input_ids)} if self._has_token_types else {}
        return {"input_ids": input_ids, **token_types}
