"""Faster forward passes, each kept only if the model gives the same embeddings with it."""

import logging
import time
from collections.abc import Callable

import numpy as np
import torch

from mlfilter_core.compute.linear import pack_linear_layers
from mlfilter_core.encoder.attention import UNPADDED, can_attend_unpadded
from mlfilter_core.encoder.forward_pass import Batch, ForwardPass

TRIAL_TOKENS = 512  # tokens of a text in a trial, about those of the median web page
# Largest relative distance of two embeddings of one text that differ by rounding only.
ROUNDING = {torch.float32: 1e-3, torch.bfloat16: 0.05, torch.float16: 0.01}

_log = logging.getLogger(__name__)


def optimize(forward_pass: ForwardPass, pad_to_max_length: bool, torch_compile: bool) -> None:
    """Makes a forward pass faster, in place; it is for inference from then on.

    Args:
        forward_pass: Forward pass of the loaded model.
        pad_to_max_length: Whether texts have to be padded.
        torch_compile: Whether to try torch.compile.
    """
    if not pad_to_max_length:
        _try_unpadded_attention(forward_pass)
    if torch_compile:
        _try_to_compile(forward_pass)
    if not forward_pass.is_compiled:  # torch.compile cannot trace packed weights
        for module in forward_pass.modules:
            pack_linear_layers(module)


def _try_unpadded_attention(forward_pass: ForwardPass) -> None:
    model, transformer = forward_pass.model, forward_pass.modules[0]
    if not (can_attend_unpadded(forward_pass.device, model.dtype) and model.is_backend_compatible()):
        return
    own_attention, own_parameters = forward_pass.attention, transformer.model_forward_params

    def attend_unpadded() -> None:
        model.set_attn_implementation(UNPADDED)
        if own_parameters is not None:
            bounds = {"cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx"}
            transformer.model_forward_params = own_parameters | bounds
        forward_pass.is_unpadded = True

    reason = _reason_against(attend_unpadded, forward_pass)
    if reason is not None:
        _log.warning("this model cannot take texts without padding (%s); padded batches are slower", reason)
        model.set_attn_implementation(own_attention)
        transformer.model_forward_params = own_parameters
        forward_pass.is_unpadded = False


def _try_to_compile(forward_pass: ForwardPass) -> None:
    model = forward_pass.model

    def compile_model() -> None:
        model.forward = torch.compile(model.forward, dynamic=True)

    started = time.monotonic()
    _compute_uncompilable_graphs_as_they_are(False)
    reason = _reason_against(compile_model, forward_pass)
    _compute_uncompilable_graphs_as_they_are(True)  # a later batch must not stop the job
    if reason is None:
        forward_pass.is_compiled = True
        _log.info("torch.compile took %.0f s", time.monotonic() - started)
    else:
        _log.warning("torch_compile: this model runs uncompiled (%s)", reason)
        vars(model).pop("forward", None)


def _compute_uncompilable_graphs_as_they_are(is_on: bool) -> None:
    """Sets whether torch.compile warns about a graph that it cannot compile, and runs it uncompiled, or raises."""
    torch._dynamo.config.suppress_errors = is_on


def _reason_against(change: Callable[[], None], forward_pass: ForwardPass) -> str | None:
    """Makes a change; returns why it has to be undone, None if the embeddings are the same."""
    texts = _trial_texts(forward_pass)
    batches = [texts, texts[-1:]]  # the code compiled for one text may differ from that for several
    expected = torch.cat([forward_pass.run(batch) for batch in batches])
    try:
        change()
        actual = torch.cat([forward_pass.run(batch) for batch in batches])
        distances = (actual - expected).norm(dim=1) / expected.norm(dim=1)  # raises if rows are missing
    except Exception as error:  # a model's own code and compilers raise anything
        return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    are_same = bool((distances <= ROUNDING[forward_pass.model.dtype]).all())
    return None if are_same else f"embeddings differ by {distances.max():.0%}"


def _trial_texts(forward_pass: ForwardPass) -> Batch:
    """Returns texts of three lengths, made of all tokens but the padding, from which some models count positions."""
    longest = min(forward_pass.properties.max_length or TRIAL_TOKENS, TRIAL_TOKENS)
    vocabulary = np.arange(forward_pass.model.config.get_text_config().vocab_size)
    tokens = vocabulary[vocabulary != forward_pass.pad_token_id]
    lengths = [length for length in (longest // 2, longest * 2 // 3, longest) if length > 0]
    return [np.resize(tokens[number:], length).astype(np.int32) for number, length in enumerate(lengths)]
