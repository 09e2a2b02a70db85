"""Faster forward passes, each kept only if the model gives the same embeddings with it."""

import functools
import logging
import time
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from mlfilter_core.compute.devices import is_out_of_memory
from mlfilter_core.compute.linear import pack_linear_layers
from mlfilter_core.encoder.attention import UNPADDED, can_attend_unpadded
from mlfilter_core.encoder.attention_windows import reason_against_windows, recording_windows
from mlfilter_core.encoder.forward_pass import Batch, ForwardPass
from mlfilter_core.encoder.openvino_engine import PRECISIONS, OpenVinoEngine, is_installed
from mlfilter_core.errors import EncoderError, in_one_line

TRIAL_TOKENS = 512  # tokens of a text in a trial, about those of the median web page
SHORT = range(1, 6)  # tokens of the texts in which a token from outside weighs most
# Largest relative distance of two embeddings of one text that differ by rounding only: in a model of few layers, and in
# any. Between the two, a deep model may differ from itself by as much as its own batches of several texts do.
ROUNDING = {torch.float32: (1e-5, 1e-4), torch.bfloat16: (0.05, 0.05), torch.float16: (0.01, 0.01)}

_log = logging.getLogger(__name__)


class _Trial:
    """Texts, and their embeddings by the model as it was loaded, each text alone, without padding.

    The texts have few and many tokens, and special tokens among them, the padding token too.
    """

    def __init__(self, forward_pass: ForwardPass) -> None:
        self._forward_pass = forward_pass
        alone = [(text, self._alone(text)) for text in _trial_texts(forward_pass)]
        self._texts = [text for text, embedding in alone if embedding is not None]
        self._expected = torch.cat([embedding for _, embedding in alone if embedding is not None])
        least, self._most = ROUNDING[forward_pass.model.dtype]
        own = self._distance()
        self._allowed = max(least, min(2 * own, self._most))
        if own > self._most and forward_pass.padded_length is None:
            forward_pass.depends_on_padding = True
            _log.warning(
                "padding changes this model's embeddings (by %.1e): only texts of equally many tokens share a batch, "
                "which is slower",
                own,
            )

    def _alone(self, text: NDArray[np.int32]) -> torch.Tensor | None:
        """Returns the embedding of a text alone; None if the model cannot take a text of a few tokens.

        Raises:
            EncoderError: It cannot take a longer one.
        """
        try:
            return self._forward_pass.run([text])
        except Exception as error:  # a model's own code raises anything
            if is_out_of_memory(error):
                raise
            if len(text) in SHORT:
                return None
            raise EncoderError(f"the model fails on a text of {len(text)} tokens: {in_one_line(error)}") from error

    def reason_against(self, change: Callable[[], None]) -> str | None:
        """Makes a change; returns why it has to be undone, None if the embeddings are the same."""
        try:
            change()
            distance = self._distance()  # raises if rows are missing
        except Exception as error:  # a model's own code and compilers raise anything
            return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        return None if distance <= self._allowed else f"embeddings differ by {distance:.1e} of their length"

    def _distance(self) -> float:
        """Returns the largest distance of an embedding, in a batch or alone, from the expected one.

        It is a share of the mean length of embeddings: that of a text of padding tokens alone may be 0.
        """
        texts, run = self._texts, self._forward_pass.run
        every = list(range(len(texts)))
        batches = [every, every[-1:]]  # the code compiled for one text may differ from that for several
        if self._forward_pass.engine is not None:  # each of its requests meets several lengths, and equal ones
            batches += [every * 2, every[:-1]] * (self._forward_pass.engine.n_requests // 8 + 1)
        actual = torch.cat([run([texts[i] for i in batch]) for batch in batches])
        expected = torch.cat([self._expected[batch] for batch in batches])
        distances = (actual - expected).norm(dim=1) / expected.norm(dim=1).mean()
        return float("inf") if distances.isnan().any() else float(distances.max())


def _trial_texts(forward_pass: ForwardPass) -> Batch:
    """Returns texts of few and of many tokens, made of all tokens."""
    longest = min(forward_pass.properties.max_length or TRIAL_TOKENS, TRIAL_TOKENS)
    tokens = np.arange(forward_pass.model.config.get_text_config().vocab_size)
    lengths = [length for length in (*SHORT, longest // 2, longest * 2 // 3, longest) if 0 < length <= longest]
    texts = [np.resize(np.roll(tokens, -number), length).astype(np.int32) for number, length in enumerate(lengths)]
    texts[-1][longest // 3] = forward_pass.pad_token_id
    return texts


def optimize(
    forward_pass: ForwardPass, pad_to_max_length: bool, torch_compile: bool, has_openvino: bool = False
) -> None:
    """Makes a forward pass faster, in place; it is for inference from then on.

    Args:
        forward_pass: Forward pass of the loaded model.
        pad_to_max_length: Whether texts have to be padded.
        torch_compile: Whether to try torch.compile.
        has_openvino: Whether to try OpenVINO, on a CPU and without torch.compile.
    """
    if torch_compile or not pad_to_max_length:
        trial = _Trial(forward_pass)
        if has_openvino and not (torch_compile or pad_to_max_length):
            _try_openvino(forward_pass, trial)
        if not pad_to_max_length and forward_pass.engine is None:
            _try_unpadded_attention(forward_pass, trial)
        if torch_compile:
            _try_to_compile(forward_pass, trial)
    if not forward_pass.is_compiled:  # torch.compile cannot trace packed weights
        for module in forward_pass.modules[0 if forward_pass.engine is None else forward_pass.engine.n_modules :]:
            pack_linear_layers(module)


def _try_openvino(forward_pass: ForwardPass, trial: _Trial) -> None:
    """Computes transformer and pooling by OpenVINO, where it is installed and gives the same embeddings."""
    if forward_pass.device.type != "cpu":
        return
    dtype, max_length = forward_pass.model.dtype, forward_pass.properties.max_length
    if not is_installed():
        _log.info("PyTorch computes this model; OpenVINO is faster on a CPU: pip install 'mlfilter[openvino]'")
        return
    if dtype not in PRECISIONS or max_length is None or max_length > TRIAL_TOKENS:
        _log.info(
            "PyTorch computes this model; OpenVINO would for texts of at most %d tokens, in float32 or bfloat16",
            TRIAL_TOKENS,
        )
        return

    modules, others = forward_pass.until_pooling(), forward_pass.properties.prompt_features
    texts = _trial_texts(forward_pass)[-3:]
    example = np.array([text[: len(texts[0])] for text in texts], np.int64)

    def compute_by_openvino(has_mask: bool) -> None:
        n_cores = torch.get_num_threads()
        forward_pass.engine = OpenVinoEngine(modules, others, example, has_mask, dtype, n_cores)

    reason: str | None = None
    for has_mask in (False, True):
        reason = trial.reason_against(functools.partial(compute_by_openvino, has_mask))
        if reason is None:
            forward_pass.modules[0].to("meta")  # its memory is freed
            return
        forward_pass.engine = None
    _log.info("PyTorch computes this model, and not OpenVINO (%s)", reason)


def _try_unpadded_attention(forward_pass: ForwardPass, trial: _Trial) -> None:
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

    with recording_windows() as windows:
        reason = trial.reason_against(attend_unpadded)
    reason = reason or reason_against_windows(model, forward_pass.properties.max_length, windows)
    if reason is not None:
        _log.warning("this model cannot take texts without padding (%s); padded batches are slower", reason)
        model.set_attn_implementation(own_attention)
        transformer.model_forward_params = own_parameters
        forward_pass.is_unpadded = False


def _try_to_compile(forward_pass: ForwardPass, trial: _Trial) -> None:
    model = forward_pass.model

    def compile_model() -> None:
        model.forward = torch.compile(model.forward, dynamic=True)

    started = time.monotonic()
    _compute_uncompilable_graphs_as_they_are(False)
    reason = trial.reason_against(compile_model)
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
