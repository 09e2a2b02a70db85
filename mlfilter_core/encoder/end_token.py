"""The end token of a tokenizer, which last-token pooling reads."""

import json
from pathlib import Path
from typing import Any

from tokenizers import processors

from mlfilter_core.encoder.model_files import read_settings
from mlfilter_core.errors import EncoderError


def add_eos(tokenizer: Any) -> None:
    """Lets a tokenizer end each text with its end token, in place; a tokenizer that already does is left as it is.

    Raises:
        EncoderError: It has no end token, or is not a fast tokenizer.
    """
    if tokenizer.eos_token_id is None or not tokenizer.is_fast:
        raise EncoderError("params.add_eos: the tokenizer has no end token; remove add_eos")
    if _ends_with_eos(tokenizer):
        return
    backend = tokenizer.backend_tokenizer
    backend.post_processor = _ending_with(backend.post_processor, tokenizer.eos_token, tokenizer.eos_token_id)


def missing_eos(tokenizer: Any, folder: Path) -> str | None:
    """Returns a warning where `tokenizer_config.json` asks for an end token that the tokenizer does not add."""
    asks = read_settings(folder / "tokenizer_config.json").get("add_eos_token") is True
    if not asks or tokenizer.eos_token_id is None or _ends_with_eos(tokenizer):
        return None
    return (
        f"{folder}: tokenizer_config.json asks for {tokenizer.eos_token} at the end of each text (add_eos_token), and "
        "tokenizer.json does not add it. Embeddings equal sentence-transformers' without it; set params.add_eos: true "
        "if the model was trained with it"
    )


def _ends_with_eos(tokenizer: Any) -> bool:
    return bool(tokenizer("a")["input_ids"][-1:] == [tokenizer.eos_token_id])


def _ending_with(own: Any, eos: str, eos_id: int) -> Any:
    """Returns a post-processor that does what `own` does, and then adds a token.

    Two templates in a sequence do not work: tokenizers 0.23 drops what the second adds.
    """
    state: dict[str, Any] = {"type": None} if own is None else json.loads(own.__getstate__())
    if state["type"] == "TemplateProcessing":
        pieces = [next(iter(piece.values())) for piece in state["single"]]
        names = [f"${piece['id']}:{piece['type_id']}" if "Sequence" in kind else f"{piece['id']}:{piece['type_id']}"
                 for kind, piece in zip(state["single"], pieces, strict=True)]  # fmt: skip
        tokens = [*state["special_tokens"].values(), {"id": eos, "ids": [eos_id], "tokens": [eos]}]
        return processors.TemplateProcessing(single=[*names, f"{eos}:0"], special_tokens=tokens)
    if state["type"] == "Sequence":
        kinds = [part["type"] for part in state["processors"]]
        if "TemplateProcessing" in kinds:
            place = kinds.index("TemplateProcessing")
            own[place] = _ending_with(own[place], eos, eos_id)
            return own
    ending = processors.TemplateProcessing(single=f"$A {eos}", special_tokens=[(eos, eos_id)])
    return ending if own is None else processors.Sequence([own, ending])
