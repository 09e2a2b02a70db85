"""Static embeddings, such as model2vec's: the mean of one vector for each token, without a transformer.

sentence-transformers loads them as the module `StaticEmbedding`.
"""

from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from transformers import PreTrainedTokenizerFast

from mlfilter_core.encoder.forward_pass import Batch, ForwardPass
from mlfilter_core.encoder.model_properties import ModelProperties, read_shared_properties
from mlfilter_core.encoder.settings import EncoderSettings
from mlfilter_core.errors import EncoderError

POOLING = "mean"


class StaticForwardPass(ForwardPass):
    """Looks up the vectors of tokens and averages them, in float32."""

    def __init__(self, model: SentenceTransformer, settings: EncoderSettings, device: torch.device) -> None:
        """Takes a model that begins with `StaticEmbedding`.

        Raises:
            EncoderError: The settings ask for what such a model has not.
        """
        if settings.pooling not in (None, POOLING):
            raise EncoderError("params.pooling: static embeddings are means of their tokens; remove it")
        if settings.add_eos or settings.pad_to_max_length:
            raise EncoderError(
                "static embeddings have no end token and no padding; remove params.add_eos, or padding: max_length"
            )
        self.modules = [model[0].float(), *list(model)[1:]]
        self.model = model[0].embedding
        self.properties = _properties(model, settings)
        self.device = device
        self.padded_length = None
        self.is_unpadded, self.depends_on_padding, self.is_compiled = True, False, False
        self.engine = None

    @property
    def attention(self) -> str:
        """There is none."""
        return "no"

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the vectors."""
        return self.model.weight.dtype  # type: ignore[no-any-return]

    def _features(self, batch: Batch) -> dict[str, Any]:
        lengths = np.fromiter(map(len, batch), np.int64, len(batch))
        input_ids = np.concatenate(batch).astype(np.int64)
        return {"input_ids": torch.from_numpy(input_ids), "offsets": torch.from_numpy(np.cumsum(lengths) - lengths)}


def is_static(model: SentenceTransformer) -> bool:
    """Whether a model begins with static embeddings."""
    return isinstance(model[0], StaticEmbedding)


def static_tokenizer(model: SentenceTransformer) -> PreTrainedTokenizerFast:
    """Returns the tokenizer of static embeddings, which adds no special tokens."""
    tokenizer = model[0].tokenizer
    tokenizer.post_processor = None
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)  # type: ignore[no-untyped-call]


def _properties(model: SentenceTransformer, settings: EncoderSettings) -> ModelProperties:
    truncation = model[0].tokenizer.truncation or {}
    return ModelProperties(
        **read_shared_properties(model, settings),
        max_length=settings.max_length or truncation.get("max_length"),
        pooling=POOLING,
        padding_position=None,
        long_positions=None,
        prompt_features={},
    )
