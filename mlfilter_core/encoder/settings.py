"""Settings of a job that change what an encoder computes.

Knows nothing about torch: a flow can make a request without importing it.
"""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Chunks:
    """The division of long documents into chunks of `max_length` tokens, each with its own embedding.

    Attributes:
        overlap: Tokens of a document that two neighbouring chunks share.
        most: Most chunks of a document; the tokens after them are cut, or the document is rejected.
    """

    overlap: int = 0
    most: int = 32


@dataclass(frozen=True)
class EncoderSettings:
    """Settings that change the embeddings of a given model.

    Attributes:
        max_length: Most tokens of a document, or of a chunk, special tokens and prompt included; None takes the
            model's own maximum.
        truncate: Whether longer documents are cut; otherwise they are rejected.
        pad_to_max_length: Whether every batch is padded to `max_length` instead of its longest document.
        pooling: `cls`, `mean`, `max` or `last_token`; None takes the model's own, or the mean.
        prompt: Text before each document; None takes the model's own default prompt.
        model_dtype: torch name of the transformer's dtype, or `auto`; pooling is in float32.
        trust_remote_code: Whether to run Python code that the model's repository ships.
        embedding_dim: First dimensions to keep (Matryoshka), of unit length again where the model normalises; None
            keeps what the model's folder says.
        add_eos: Whether to end each text with the tokenizer's end token, where the tokenizer itself does not.
        chunks: Division of documents above `max_length`; None cuts or rejects them.
    """

    max_length: int | None = None
    truncate: bool = True
    pad_to_max_length: bool = False
    pooling: str | None = None
    prompt: str | None = None
    model_dtype: str = "float32"
    trust_remote_code: bool = False
    embedding_dim: int | None = None
    add_eos: bool = False
    chunks: Chunks | None = None

    def provenance(self) -> dict[str, Any]:
        """Returns the settings, recorded in every file of embeddings."""
        later = ("embedding_dim", "add_eos", "chunks")  # earlier files lack them
        return {name: value for name, value in asdict(self).items() if name not in later or value}
