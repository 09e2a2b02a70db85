"""The properties of a loaded model: width, pooling, normalization, prompt, positions."""

from dataclasses import dataclass
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize
from sentence_transformers.sentence_transformer.modules import Pooling

from mlfilter_core.encoder.settings import EncoderSettings
from mlfilter_core.errors import EncoderError

# Pooling modes: name in job files, name in sentence-transformers.
POOLING_MODES = {"cls": "cls", "mean": "mean", "max": "max", "last_token": "lasttoken"}
# A tokenizer without a maximum length states a huge number instead of none.
NO_MAXIMUM = 1 << 24


@dataclass(frozen=True)
class ModelProperties:
    """The properties of a model after the settings of a job are applied.

    Attributes:
        dim: Width of an embedding.
        max_length: Most tokens of a document; None if neither job nor model has a limit.
        pooling: Pooling modes, `cls+mean` for two side by side.
        is_normalized: Whether the model scales its embeddings to unit length.
        prompt: Text before each document.
        first_position: Position of a text's first token; RoBERTa-like models count from `padding_idx + 1`.
        prompt_features: Features that sentence-transformers adds to the token ids because of the prompt.
    """

    dim: int
    max_length: int | None
    pooling: str
    is_normalized: bool
    prompt: str
    first_position: int
    prompt_features: dict[str, Any]


def read_properties(model: SentenceTransformer, settings: EncoderSettings) -> ModelProperties:
    """Returns the properties of a model.

    Raises:
        EncoderError: The settings ask for more tokens than the model has positions for, the prompt leaves no room for
            a document, or the tokenizer gives token types.
    """
    prompt = model.prompts.get(model.default_prompt_name) if settings.prompt is None else settings.prompt
    properties = ModelProperties(
        dim=model.get_embedding_dimension(),
        max_length=_max_length(model, settings),
        pooling="+".join(_pooling_modes(model)),
        is_normalized=any(isinstance(module, Normalize) for module in model),
        prompt=prompt or "",
        first_position=_first_position(_position_table(model[0].model)),
        prompt_features=_prompt_features(model[0], prompt),
    )
    _check_prompt(model[0].tokenizer, properties)
    return properties


def _max_length(model: SentenceTransformer, settings: EncoderSettings) -> int | None:
    stated = model.max_seq_length
    stated = None if stated is None or stated > NO_MAXIMUM else int(stated)
    wanted = settings.max_length or stated
    table = _position_table(model[0].model)
    n_positions = None if table is None else table.num_embeddings - _first_position(table)
    if wanted is not None and n_positions is not None and wanted > n_positions:
        raise EncoderError(
            f"params.max_length is {wanted}, but the model has positions for {n_positions} tokens; "
            f"set max_length to {n_positions} or less"
        )
    return wanted or n_positions


def _position_table(transformer: torch.nn.Module) -> torch.nn.Embedding | None:
    """Returns the table of absolute positions; None if the model has none."""
    for name, module in transformer.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding):
            return module
    return None


def _first_position(table: torch.nn.Embedding | None) -> int:
    return 0 if table is None or table.padding_idx is None else table.padding_idx + 1


def _pooling_modes(model: SentenceTransformer) -> list[str]:
    names = {theirs: ours for ours, theirs in POOLING_MODES.items()}
    modes: list[str] = []
    for module in model:
        if isinstance(module, Pooling):
            own = module.pooling_mode
            modes += [names.get(mode, mode) for mode in ([own] if isinstance(own, str) else own)]
    return modes


def _prompt_features(transformer: Any, prompt: str | None) -> dict[str, Any]:
    """Runs sentence-transformers' own preprocessing once, to find the features that it adds to the token ids."""
    features = transformer.preprocess(["a"], prompt=prompt or None)
    if features.get("token_type_ids", torch.zeros(1)).any():
        raise EncoderError("this tokenizer gives token types other than 0, which is not supported")
    return {"prompt_length": features["prompt_length"]} if "prompt_length" in features else {}


def _check_prompt(tokenizer: Any, properties: ModelProperties) -> None:
    prompt, max_length = properties.prompt, properties.max_length
    n_tokens = len(tokenizer(prompt)["input_ids"])
    if prompt and max_length is not None and n_tokens >= max_length:
        raise EncoderError(
            f"the prompt alone has {n_tokens} tokens, and max_length is {max_length}: every document would "
            "get the same embedding; raise params.max_length, or shorten params.prompt"
        )
