"""Attention over documents that lie one after another in one row, without padding between them.

Models of transformers call it by the name `UNPADDED`, instead of their own attention: padding then costs nothing,
neither in attention nor in the layers around it. On a GPU it is PyTorch's variable-length FlashAttention. On a CPU
in bfloat16 it is plain matrix products, which take half the time of PyTorch's fused kernel (MiniLM, texts of 512
tokens, two cores of a Zen 5 EPYC: 1.4 ms beside 3.3 ms for each text and layer). In float32 they are no faster.
"""

import math
from itertools import pairwise
from typing import Any, cast

import torch
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

UNPADDED = "mlfilter_unpadded"
# Plain products hold one score for each pair of tokens and each head, hence the limit.
MAX_PRODUCTS_TOKENS = 1024
# The power of 2 of such a score, and the sum of a thousand of them, are far from the limits of bfloat16.
MAX_EXPONENT = 86.0
LOG2_E = math.log2(math.e)


def can_attend_unpadded(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether there is a kernel for it."""
    if device.type == "cuda":
        is_half = dtype in (torch.bfloat16, torch.float16)
        return is_half and torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu"


def unpadded_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    cu_seq_lens_q: torch.Tensor,
    max_length_q: int,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **ignored: Any,
) -> tuple[torch.Tensor, None]:
    """Lets each token see the tokens of its own document.

    Args:
        module: The layer that asks; its `is_causal` says whether a token sees later ones.
        query: (1, n_heads, n_tokens, width).
        key: (1, n_heads or a divisor of it, n_tokens, width).
        value: As `key`.
        attention_mask: Not needed.
        cu_seq_lens_q: int32 (n_documents + 1,), where each document starts, and where the last one ends.
        max_length_q: Tokens of the longest document.
        scaling: Of the scores; None is 1 / sqrt(width).
        sliding_window: Distance from which on a token is not seen; None sees all.
        ignored: What transformers passes to other kernels.

    Returns:
        (1, n_tokens, n_heads, width), and no attention weights.
    """
    is_causal = bool(getattr(module, "is_causal", False))
    window = -1 if sliding_window is None else sliding_window - 1
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    attend = _attend_on_gpu if query.device.type == "cuda" else _attend_on_cpu
    return attend(query, key, value, cu_seq_lens_q, max_length_q, is_causal, window, scaling), None


def _attend_on_gpu(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_lens: torch.Tensor,
    max_length: int,
    is_causal: bool,
    window: int,
    scaling: float,
) -> torch.Tensor:
    """Returns (1, n_tokens, n_heads, width); a window of -1 sees all."""
    query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    # Only what is asked for: earlier versions of PyTorch know less of it.
    options: dict[str, Any] = {} if scaling == query.shape[-1] ** -0.5 else {"scale": scaling}
    if is_causal or window >= 0:
        options["window_size"] = (window, 0 if is_causal else window)
    if query.shape[1] != key.shape[1]:
        options["enable_gqa"] = True
    attended = varlen_attn(query, key, value, cu_seq_lens, cu_seq_lens, max_length, max_length, **options)
    return cast(torch.Tensor, attended)[None]


# One operator, so that torch.compile does not look into its loop, which depends on the documents.
@torch.library.custom_op("mlfilter::attend_on_cpu", mutates_args=())
def _attend_on_cpu(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_lens: torch.Tensor,
    max_length: int,
    is_causal: bool,
    window: int,
    scaling: float,
) -> torch.Tensor:
    """Returns (1, n_tokens, n_heads, width); a window of -1 sees all."""
    bounds = cu_seq_lens.tolist()
    attended: torch.Tensor = _uninitialized(query, key, value)
    is_plain = not is_causal and window < 0 and query.shape == key.shape
    if is_plain and query.dtype == torch.bfloat16 and max_length <= MAX_PRODUCTS_TOKENS:
        _attend_by_products(query[0], key[0], value[0], bounds, scaling, attended[0].transpose(0, 1))
        return attended
    for start, end in pairwise(bounds):
        attended[:, start:end] = scaled_dot_product_attention(
            query[:, :, start:end],
            key[:, :, start:end],
            value[:, :, start:end],
            attn_mask=None if window < 0 else _band(end - start, window, is_causal),
            is_causal=is_causal and window < 0,
            scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        ).transpose(1, 2)
    return attended


@_attend_on_cpu.register_fake
def _uninitialized(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *ignored: Any) -> torch.Tensor:
    return value.new_empty((1, query.shape[2], query.shape[1], value.shape[3]))


def _attend_by_products(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bounds: list[int],
    scaling: float,
    attended: torch.Tensor,
) -> None:
    """Fills `attended`; all tensors are (n_heads, n_tokens, width)."""
    # The largest score is bounded by the Cauchy-Schwarz inequality. Where none is large, exponentials need not be taken
    # relative to the largest of their row, which would be another pass over all of them; and powers of 2 take less time
    # than those of e.
    largest = scaling * (query.norm(dim=-1).amax(dim=-1) * key.norm(dim=-1).amax(dim=-1)).amax()
    are_small = bool(largest * LOG2_E <= MAX_EXPONENT)
    query = query * (scaling * LOG2_E if are_small else scaling)
    for start, end in pairwise(bounds):
        keys, values = key[:, start:end].contiguous(), value[:, start:end].contiguous()
        scores = torch.bmm(query[:, start:end].contiguous(), keys.transpose(1, 2))
        if are_small:
            weights = scores.exp2_()
            attended[:, start:end] = torch.bmm(weights, values).div_(weights.sum(dim=-1, keepdim=True))
        else:
            attended[:, start:end] = torch.bmm(torch.softmax(scores, dim=-1), values)


def _band(n_tokens: int, window: int, is_causal: bool) -> torch.Tensor:
    positions = torch.arange(n_tokens)
    distance = positions[:, None] - positions
    return (distance <= window) & (distance >= (0 if is_causal else -window))


AttentionInterface.register(UNPADDED, unpadded_attention)
