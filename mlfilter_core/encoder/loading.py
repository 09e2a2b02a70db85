"""Model files to an encoder on a device.

sentence-transformers loads the models, their pooling, dense layers, normalization and prompts.
"""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling

from mlfilter_core.compute.devices import keep_freed_memory, pick_device, pick_dtype
from mlfilter_core.encoder.batching import find_max_batch_tokens
from mlfilter_core.encoder.encoder import Encoder
from mlfilter_core.encoder.forward_pass import ForwardPass
from mlfilter_core.encoder.model_files import ModelFiles
from mlfilter_core.encoder.model_properties import POOLING_MODES, read_properties
from mlfilter_core.encoder.optimizations import TRIAL_TOKENS, optimize
from mlfilter_core.encoder.settings import EncoderSettings
from mlfilter_core.errors import EncoderError

_log = logging.getLogger(__name__)


def load_encoder(
    files: ModelFiles,
    settings: EncoderSettings,
    device: str = "auto",
    max_batch_tokens: int | None = None,
    torch_compile: bool = False,
) -> Encoder:
    """Loads an encoder onto a device.

    Args:
        files: Result of `resolve_model`.
        settings: Settings that change its embeddings.
        device: `auto` (CUDA, then MPS, then CPU), or a torch device such as `cuda:1`.
        max_batch_tokens: Most tokens in one forward pass; None measures for a few seconds which size is fastest here.
        torch_compile: Spend a minute on compiling the forward pass with torch.compile.

    Raises:
        EncoderError: The files are not an encoder of texts, or `max_length` exceeds the model's positions.
        ConfigError: The device does not exist.
    """
    chosen = pick_device(device)
    if chosen.type == "cpu":
        keep_freed_memory()
    model = _load_model(files.folder, chosen, settings)
    forward_pass = ForwardPass(model, read_properties(model, settings), chosen, settings.pad_to_max_length)
    optimize(forward_pass, settings.pad_to_max_length, torch_compile)
    if max_batch_tokens is None:
        max_batch_tokens, reason = _find_max_batch_tokens(forward_pass)
    else:
        reason = "as asked for"
    encoder = Encoder(settings, model[0].tokenizer, forward_pass, max_batch_tokens, reason)
    _log.info(
        "encoder %s: %d dimensions, %s pooling, at most %s tokens, %s",
        *(files.model, encoder.dim, encoder.pooling, encoder.max_length, encoder),
    )
    return encoder


def _load_model(folder: Path, device: torch.device, settings: EncoderSettings) -> SentenceTransformer:
    """Returns the model for inference, with the job's pooling, dtype and a pad token."""
    if not settings.trust_remote_code:
        _check_activations(folder)
    try:
        model = SentenceTransformer(
            str(folder),
            device=str(device),
            trust_remote_code=settings.trust_remote_code,
            model_kwargs={"dtype": torch.float32},
        )
    except Exception as error:  # transformers raises ValueError, OSError, KeyError, ImportError, ...
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise EncoderError(f"embedding_model: {folder} does not load: {reason}") from error
    _check_is_text_encoder(model[0], folder)
    _set_pad_token(model[0].tokenizer)
    if settings.pooling is not None:
        _set_pooling(model, settings.pooling)
    model[0].to(pick_dtype(settings.model_dtype, device))
    return model.eval()


def _check_activations(folder: Path) -> None:
    """Rejects a dense layer whose activation is code, for which sentence-transformers would use Tanh, with a warning.

    Raises:
        EncoderError: There is one.
    """
    for path in sorted(folder.glob("*/config.json")):
        own = json.loads(path.read_text(encoding="utf-8"))
        activation = own.get("activation_function", "torch.") if isinstance(own, dict) else "torch."
        if not str(activation).startswith("torch."):
            raise EncoderError(
                f"embedding_model: {path} names {activation} as activation, which is not from PyTorch; read that "
                "code, and set params.trust_remote_code: true to run it"
            )


def _check_is_text_encoder(first: torch.nn.Module, folder: Path) -> None:
    if not isinstance(first, Transformer) or first.module_output_name != "token_embeddings":
        raise EncoderError(
            f"embedding_model: {folder} starts with {type(first).__name__}; only Hugging Face "
            "transformers that give one embedding for each token are supported"
        )
    if "message" in first.modalities:
        raise EncoderError(f"embedding_model: {folder} reads chat messages; only plain text is supported")


def _set_pad_token(tokenizer: Any) -> None:
    """Lets a tokenizer without a pad token pad with another token: the attention mask hides it."""
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token or tokenizer.cls_token
    if tokenizer.pad_token_id is None:
        raise EncoderError("the tokenizer has no pad token; set one, and save it with tokenizer.save_pretrained(...)")


def _set_pooling(model: SentenceTransformer, pooling: str) -> None:
    width = model[0].get_embedding_dimension()
    for name, module in model.named_children():
        if isinstance(module, Pooling):
            setattr(model, name, Pooling(width, POOLING_MODES[pooling], include_prompt=module.include_prompt))


def _find_max_batch_tokens(forward_pass: ForwardPass) -> tuple[int, str]:
    """Returns the fastest size of batches, and what was measured, as text."""
    max_length = forward_pass.properties.max_length
    length = forward_pass.padded_length or min(max_length or TRIAL_TOKENS, TRIAL_TOKENS)
    document = np.ones(length, np.int32)  # the speed does not depend on which tokens they are

    def encode(n_tokens: int) -> int | None:
        encoded = forward_pass.run_if_it_fits([document] * max(n_tokens // length, 1))
        return None if encoded is None else len(encoded.cpu()) * length

    return find_max_batch_tokens(encode)
