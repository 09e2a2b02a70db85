"""The properties of a loaded model: width, pooling, normalization, prompt, positions."""

from dataclasses import dataclass
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize
from sentence_transformers.sentence_transformer.modules import Dropout, Pooling

from mlfilter_core.encoder.settings import EncoderSettings
from mlfilter_core.errors import EncoderError

# Pooling modes: name in job files, name in sentence-transformers.
POOLING_MODES = {"cls": "cls", "mean": "mean", "max": "max", "last_token": "lasttoken"}
# A tokenizer without a maximum length states a huge number instead of none.
NO_MAXIMUM = 1 << 24
POSITION_TABLES = ("position_embeddings", "wpe", "embed_positions")

# Settings of a tokenizer's call that have no effect on embeddings here.
HARMLESS_PROCESSING: dict[str, tuple[Any, ...]] = {
    "add_special_tokens": (True,),
    "padding": (True, "longest"),
    "return_tensors": ("pt",),
    "truncation": (True, "longest_first", "only_first"),
}


@dataclass(frozen=True)
class ModelProperties:
    """The properties of a model after the settings of a job are applied.

    Attributes:
        dim: Width of an embedding.
        max_length: Most tokens of a document; None if neither job nor model has a limit.
        pooling: Pooling modes, `cls+mean` for two side by side.
        is_normalized: Whether embeddings have unit length.
        is_normalized_again: Whether they are scaled to it once more, after dimensions were dropped.
        prompt: Text before each document.
        padding_position: Position of padding, after which RoBERTa-like models count; None where positions count from 0.
        long_positions: Number of tokens above which a text has other rotary frequencies, and so has every text that
            shares its batch; None where frequencies are always the same.
        prompt_features: Features that sentence-transformers adds to the token ids because of the prompt.
    """

    dim: int
    max_length: int | None
    pooling: str
    is_normalized: bool
    is_normalized_again: bool
    prompt: str
    padding_position: int | None
    long_positions: int | None
    prompt_features: dict[str, Any]


def read_properties(model: SentenceTransformer, settings: EncoderSettings) -> ModelProperties:
    """Returns the properties of a model.

    Raises:
        EncoderError: The settings ask for more tokens than the model has positions for, or for more dimensions than it
            has; the prompt leaves no room for a document; or the tokenizer gives token types.
    """
    shared = read_shared_properties(model, settings)
    table, rotary = _position_table(model[0].model), _rotary_types(model[0].model)
    properties = ModelProperties(
        **shared,
        max_length=_max_length(model, settings, table),
        pooling="+".join(_pooling_modes(model)),
        padding_position=_padding_position(table),
        long_positions=rotary.get("longrope"),
        prompt_features=_prompt_features(model[0], shared["prompt"]),
    )
    check_prompt(model[0].tokenizer, properties)
    _check_rotary_positions(rotary, properties)
    return properties


def read_shared_properties(model: SentenceTransformer, settings: EncoderSettings) -> dict[str, Any]:
    """Returns `dim`, `is_normalized`, `is_normalized_again` and `prompt` of `ModelProperties`, of any kind of model.

    Raises:
        EncoderError: The settings ask for more dimensions than the model has.
    """
    with model.truncate_embeddings(None):
        whole = model.get_embedding_dimension()
    if settings.embedding_dim is not None and whole < settings.embedding_dim:
        raise EncoderError(f"params.embedding_dim is {settings.embedding_dim}, but the model gives {whole} dimensions")
    dim = settings.embedding_dim or min(model.truncate_dim or whole, whole)
    is_normalized = _is_normalized(model)
    prompt = model.prompts.get(model.default_prompt_name) if settings.prompt is None else settings.prompt
    # sentence-transformers does not normalise again what a folder's truncate_dim cuts.
    is_again = is_normalized and settings.embedding_dim is not None
    return {
        "dim": dim,
        "is_normalized": is_normalized and (dim == whole or is_again),
        "is_normalized_again": is_again,
        "prompt": prompt or "",
    }


def _is_normalized(model: SentenceTransformer) -> bool:
    """Whether nothing after the normalisation changes lengths."""
    *_, last = (module for module in model if not isinstance(module, Dropout))
    return isinstance(last, Normalize)


def _max_length(model: SentenceTransformer, settings: EncoderSettings, table: Any) -> int | None:
    stated = _processing(model[0]).get("max_length") or model.max_seq_length
    stated = None if stated is None or stated > NO_MAXIMUM else int(stated)
    n_positions = None if table is None else _n_positions(model[0].model, table)
    if n_positions is None:
        return settings.max_length or stated
    if settings.max_length is not None and settings.max_length > n_positions:
        raise EncoderError(
            f"params.max_length is {settings.max_length}, but the model has positions for {n_positions} tokens; "
            f"set max_length to {n_positions} or less"
        )
    # Some folders state the size of the table, padding included.
    return settings.max_length or min(stated or n_positions, n_positions)


def _processing(transformer: Any) -> dict[str, Any]:
    """Returns the settings with which sentence-transformers calls the tokenizer, `processing_kwargs` of its file.

    Raises:
        EncoderError: One of them is not supported.
    """
    own = transformer.processing_kwargs
    settings = {**own.get("common", {}), **own.get("text", {})}
    for name, value in settings.items():
        if name not in ("max_length", "pad_to_multiple_of") and value not in HARMLESS_PROCESSING.get(name, ()):
            raise EncoderError(
                f"embedding_model: processing_kwargs of sentence_bert_config.json sets {name}: {value}, which is not "
                "supported; remove it there, and set params.max_length, padding or truncation instead"
            )
    return settings


def _position_table(transformer: torch.nn.Module) -> Any:
    """Returns the table of absolute positions, an Embedding or like one; None if the model has none."""
    for name, module in transformer.named_modules():
        weight = getattr(module, "weight", None)
        if name.endswith(POSITION_TABLES) and isinstance(weight, torch.Tensor) and weight.ndim == 2:
            return module
    return None


def _n_positions(transformer: Any, table: Any) -> int:
    """Returns how many tokens a table has positions for: padding, or rows that the model skips, are left out."""
    padding = _padding_position(table)
    n_positions: int = len(table.weight) - (0 if padding is None else padding + 1)
    stated = getattr(transformer.config.get_text_config(), "max_position_embeddings", None)
    return min(n_positions, stated) if isinstance(stated, int) and stated > 0 else n_positions


def _padding_position(table: Any) -> int | None:
    return None if table is None else getattr(table, "padding_idx", None)


def _rotary_types(transformer: Any) -> dict[str, int]:
    """Returns the types of rotary positions, and the number of tokens up to which each leaves frequencies alone."""
    config = transformer.config.get_text_config()
    stated = getattr(config, "rope_parameters", None) or {}
    each = [stated] if "rope_type" in stated else [kind for kind in stated.values() if isinstance(kind, dict)]
    limit = getattr(config, "max_position_embeddings", 0)
    return {str(kind.get("rope_type")): int(kind.get("original_max_position_embeddings") or limit) for kind in each}


def _check_rotary_positions(rotary: dict[str, int], properties: ModelProperties) -> None:
    limit = rotary.get("dynamic")
    if limit is not None and (properties.max_length is None or properties.max_length > limit):
        raise EncoderError(
            f"this model's rotary positions are dynamic: above {limit} tokens, embeddings depend on the texts before; "
            f"set params.max_length to {limit} or less"
        )


def _pooling_modes(model: SentenceTransformer) -> list[str]:
    names = {theirs: ours for ours, theirs in POOLING_MODES.items()}
    modes: list[str] = []
    for module in model:
        if isinstance(module, Pooling):
            own = module.pooling_mode
            modes += [names.get(mode, mode) for mode in ([own] if isinstance(own, str) else own)]
    return modes


def _prompt_features(transformer: Any, prompt: str) -> dict[str, Any]:
    """Runs sentence-transformers' own preprocessing once, to find the features that it adds to the token ids."""
    features = transformer.preprocess(["a"], prompt=prompt or None)
    if features.get("token_type_ids", torch.zeros(1)).any():
        raise EncoderError("this tokenizer gives token types other than 0, which is not supported")
    return {"prompt_length": features["prompt_length"]} if "prompt_length" in features else {}


def check_prompt(tokenizer: Any, properties: ModelProperties) -> None:
    """Checks that the prompt leaves room for a document.

    Raises:
        EncoderError: It has as many tokens as a document may have, or more.
    """
    prompt, max_length = properties.prompt, properties.max_length
    n_tokens = len(tokenizer(prompt)["input_ids"])
    if prompt and max_length is not None and n_tokens >= max_length:
        raise EncoderError(
            f"the prompt alone has {n_tokens} tokens, and max_length is {max_length}: every document would "
            "get the same embedding; raise params.max_length, or shorten params.prompt"
        )
