"""Model files to an encoder on a device.

sentence-transformers loads the models, their pooling, dense layers, normalization and prompts.
"""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from transformers.utils.hub import HF_MODULES_CACHE

from mlfilter_core.compute.devices import keep_freed_memory, pick_device, pick_dtype
from mlfilter_core.encoder.adapter import merge_adapters
from mlfilter_core.encoder.batching import UNTRIED, find_max_batch_tokens
from mlfilter_core.encoder.encoder import Encoder
from mlfilter_core.encoder.end_token import add_eos, missing_eos
from mlfilter_core.encoder.forward_pass import ForwardPass
from mlfilter_core.encoder.loaded_weights import LoadedWeights, check_weights, recording_weights
from mlfilter_core.encoder.model_files import ModelFiles, has_own_code, read_settings, saved_modules
from mlfilter_core.encoder.model_properties import POOLING_MODES, check_prompt, read_properties
from mlfilter_core.encoder.openvino_engine import PIECE_TOKENS
from mlfilter_core.encoder.optimizations import TRIAL_TOKENS, optimize
from mlfilter_core.encoder.settings import EncoderSettings
from mlfilter_core.encoder.static_embedding import StaticForwardPass, is_static, static_tokenizer
from mlfilter_core.encoder.word_splits import split_into_words
from mlfilter_core.errors import EncoderError

# Modules of sentence-transformers that may stand in a folder's modules.json.
SUPPORTED_MODULES = (
    *("Transformer", "StaticEmbedding", "Pooling", "Dense", "Normalize", "Dropout", "LayerNorm"),
    *("CNN", "WordWeights", "WeightedLayerPooling"),
)

PIECES = 32  # for each core in one forward pass: arbitrary, some seconds of work

_log = logging.getLogger(__name__)


def load_encoder(
    files: ModelFiles,
    settings: EncoderSettings,
    device: str = "auto",
    max_batch_tokens: int | None = None,
    torch_compile: bool = False,
    has_trial: bool = True,
    has_openvino: bool = False,
) -> Encoder:
    """Loads an encoder onto a device.

    Args:
        files: Result of `resolve_model`.
        settings: Settings that change its embeddings.
        device: `auto` (CUDA, then MPS, then CPU), or a torch device such as `cuda:1`.
        max_batch_tokens: Most tokens in one forward pass; None measures for a few seconds which size is fastest here.
        torch_compile: Spend a minute on compiling the forward pass with torch.compile.
        has_trial: Whether to measure for None; otherwise `UNTRIED` tokens are taken.
        has_openvino: Spend some seconds on a conversion for OpenVINO, where it is installed and `device` is a CPU.

    Raises:
        EncoderError: The files are not an encoder of texts, or `max_length` exceeds the model's positions.
        ConfigError: The device does not exist.
    """
    chosen = pick_device(device)
    if chosen.type == "cpu":
        keep_freed_memory()
    model, weights = _load_model(files.folder, chosen, settings)
    if is_static(model):
        forward_pass: ForwardPass = StaticForwardPass(model, settings, chosen)
        tokenizer, warnings = static_tokenizer(model), []
        check_prompt(tokenizer, forward_pass.properties)
    else:
        warnings = _prepare(model, weights, files.folder, settings)
        forward_pass = ForwardPass(model, read_properties(model, settings), chosen, settings.pad_to_max_length)
        optimize(forward_pass, settings.pad_to_max_length, torch_compile, has_openvino)
        tokenizer = model[0].tokenizer
        split_into_words(tokenizer)
    if forward_pass.engine is not None:
        max_batch_tokens = PIECES * PIECE_TOKENS * torch.get_num_threads()
        reason = "of which each core takes a few texts"
    elif max_batch_tokens is not None:
        reason = "as asked for"
    elif has_trial:
        max_batch_tokens, reason = _find_max_batch_tokens(forward_pass)
    else:
        max_batch_tokens, reason = UNTRIED, "without a trial, as the corpus is small"
    encoder = Encoder(settings, tokenizer, forward_pass, max_batch_tokens, reason, warnings)
    for warning in warnings:
        _log.warning(warning)
    _log.info(
        "encoder %s: %d dimensions, %s pooling, %s, %s",
        *(files.model, encoder.dim, encoder.pooling, encoder.lengths(), encoder),
    )
    return encoder


def _load_model(
    folder: Path, device: torch.device, settings: EncoderSettings
) -> tuple[SentenceTransformer, LoadedWeights]:
    """Returns the model for inference, in the job's dtype and width, and what its files lack."""
    modules = saved_modules(folder)
    _check_modules(modules, folder)
    if not settings.trust_remote_code:
        _check_activations(folder)
    try:
        with recording_weights() as weights:
            model = SentenceTransformer(
                str(folder),
                device=str(device),
                trust_remote_code=settings.trust_remote_code,
                model_kwargs={"dtype": pick_dtype(settings.model_dtype, device)},
            )
    except Exception as error:  # transformers raises ValueError, OSError, KeyError, ImportError, ...
        raise EncoderError(f"embedding_model: {folder} does not load: {_reason(error, folder, settings)}") from error
    if settings.embedding_dim is not None:
        model.truncate_dim = settings.embedding_dim
    if not is_static(model):
        _check_is_text_encoder(model[0], folder)
        _load_in_float32(model, modules, folder, settings)
    return model.eval(), weights


def _prepare(model: SentenceTransformer, weights: LoadedWeights, folder: Path, settings: EncoderSettings) -> list[str]:
    """Gives a model the job's pooling and tokenizer settings, in place, and merges adapters; returns warnings."""
    transformer = model[0]
    if getattr(transformer.config, "attention_type", None) == "block_sparse":
        raise EncoderError(
            f"embedding_model: {folder} has block_sparse attention, which depends on the other texts of a batch; set "
            "attention_type: original_full in its config.json"
        )
    warnings = check_weights(transformer, weights, folder, settings.trust_remote_code)
    merge_adapters(transformer.model)
    _set_pad_token(transformer.tokenizer)
    if settings.add_eos:
        add_eos(transformer.tokenizer)
    elif (missing := missing_eos(transformer.tokenizer, folder)) is not None:
        warnings.append(missing)
    if settings.pooling is not None:
        _set_pooling(model, settings.pooling, folder)
    return warnings


def _check_modules(modules: list[dict[str, Any]], folder: Path) -> None:
    for entry in modules:
        package, _, kind = str(entry.get("type")).rpartition(".")
        if package.startswith("sentence_transformers") and kind not in SUPPORTED_MODULES:
            is_sparse = "sparse_encoder" in package or kind.startswith("Splade")
            raise EncoderError(
                f"embedding_model: {folder} contains the module {kind}; supported are {', '.join(SUPPORTED_MODULES)}"
                + (". It gives sparse embeddings; choose a model that gives dense ones" if is_sparse else "")
            )


def _check_activations(folder: Path) -> None:
    """Rejects a dense layer whose activation is code, for which sentence-transformers would use Tanh, with a warning.

    Raises:
        EncoderError: There is one.
    """
    for path in sorted(folder.glob("*/config.json")):
        activation = str(read_settings(path).get("activation_function", "torch."))
        if "." in activation and not activation.startswith("torch."):
            raise EncoderError(
                f"embedding_model: {path} names {activation} as activation, which is not from PyTorch; read that "
                "code, and set params.trust_remote_code: true to run it"
            )


def _reason(error: Exception, folder: Path, settings: EncoderSettings) -> str:
    """Returns the first line of an error of transformers, with the cure where it is known."""
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if has_own_code(folder) and not settings.trust_remote_code:
        reason += "; its config.json names code of its own: read it, and set params.trust_remote_code: true to run it"
    if isinstance(error, OSError) and str(error.filename).startswith(HF_MODULES_CACHE):
        reason += "; set HF_MODULES_CACHE, or HF_HOME, to a folder that can be written: code of models is copied there"
    return reason


def _load_in_float32(
    model: SentenceTransformer, modules: list[dict[str, Any]], folder: Path, settings: EncoderSettings
) -> None:
    """Loads what follows the transformer once more: sentence-transformers gives it the transformer's dtype."""
    folders = {entry["name"]: entry["path"] for entry in modules}
    for name, module in list(model.named_children())[1:]:
        if any(parameter.dtype != torch.float32 for parameter in module.parameters()):
            loaded = type(module).load(
                str(folder), subfolder=folders[name], trust_remote_code=settings.trust_remote_code
            )
            setattr(model, name, loaded.to(model.device))


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


def _set_pooling(model: SentenceTransformer, pooling: str, folder: Path) -> None:
    """Replaces the pooling.

    Raises:
        EncoderError: There is none, or a dense layer after it takes embeddings of another width.
    """
    modules = list(model.named_children())
    place = next((i for i, (_, module) in enumerate(modules) if isinstance(module, Pooling)), None)
    if place is None:
        raise EncoderError(f"embedding_model: {folder} has no pooling to replace; remove params.pooling")
    name, module = modules[place]
    chosen = Pooling(module.embedding_dimension, POOLING_MODES[pooling], include_prompt=module.include_prompt)
    given, taken = chosen.get_embedding_dimension(), module.get_embedding_dimension()
    if given != taken and any(list(after.parameters()) for _, after in modules[place + 1 :]):
        raise EncoderError(
            f"params.pooling: {pooling} gives {given} values, but the layer after it in {folder} takes {taken}, as its "
            "own pooling gives; remove params.pooling"
        )
    setattr(model, name, chosen)


def _find_max_batch_tokens(forward_pass: ForwardPass) -> tuple[int, str]:
    """Returns the fastest size of batches, and what was measured, as text."""
    max_length = forward_pass.properties.max_length
    length = forward_pass.padded_length or min(max_length or TRIAL_TOKENS, TRIAL_TOKENS)
    document = np.ones(length, np.int32)  # the speed does not depend on which tokens they are

    def encode(n_tokens: int) -> int | None:
        encoded = forward_pass.run_if_it_fits([document] * max(n_tokens // length, 1))
        return None if encoded is None else len(encoded.cpu()) * length

    return find_max_batch_tokens(encode)
