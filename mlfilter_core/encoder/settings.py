"""What a job may change about an encoder.

Knows nothing about torch, so that a flow can state a request without loading it.
"""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class EncoderSettings:
    """What changes the embeddings of a given model.

    Attributes:
        max_length: Most tokens of a document, special tokens and prompt included; None takes the
            model's own maximum.
        truncate: Cut longer documents; else they are marked as too long.
        pad_to_max_length: Pad every batch to `max_length` instead of its longest document.
        pooling: `cls`, `mean`, `max` or `last_token`; None takes the model's own, or the mean.
        prompt: Set before each text; None takes the model's own default prompt.
        model_dtype: torch name of the dtype of the transformer, or `auto`; pooling stays in float32.
        trust_remote_code: Run Python code that the model's repository ships.
    """

    max_length: int | None = None
    truncate: bool = True
    pad_to_max_length: bool = False
    pooling: str | None = None
    prompt: str | None = None
    model_dtype: str = "float32"
    trust_remote_code: bool = False

    def provenance(self) -> dict[str, Any]:
        return asdict(self)
