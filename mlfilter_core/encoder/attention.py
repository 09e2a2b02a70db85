"""Attention over documents that lie one after another in one row, without padding between them.

transformers' models use it in place of their own attention once it is set by the name `UNPADDED`. Nothing is then
computed for padding, neither in attention nor in the other layers. On a GPU it is PyTorch's variable-length
FlashAttention. On a CPU in bfloat16 it is plain matrix products, which take half the time of PyTorch's fused kernel:
1.4 ms instead of 3.3 ms for each text and layer (MiniLM, texts of 512 tokens, two cores of a Zen 5 EPYC). In float32
they are no faster.
"""

import math
from itertools import pairwise
from typing import Any, cast

import torch
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

UNPADDED = "mlfilter_unpadded"
# Plain products store a score for each pair of tokens and each head, hence the limit.
MAX_PRODUCTS_TOKENS = 1024
# 2 to the power of this, and the sum of a thousand such numbers, are far from the limits of bfloat16.
MAX_EXPONENT = 86.0
LOG2_E = math.log2(math.e)
# Arguments that transformers passes for other kernels, that repeat what `cu_seq_lens_q` says, or that a model hands on
# from its own caller. Any other could change the result, such as `softcap`, `s_aux` or `position_bias`.
WITHOUT_EFFECT = frozenset(
    {"cu_seq_lens_k", "max_length_k", "seq_idx", "position_ids", "token_type_ids"}
    | {"deterministic", "output_attentions", "use_cache"}
)


def can_attend_unpadded(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether there is a kernel for this device and dtype."""
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
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Returns the attention of each token to the tokens of its own document.

    Args:
        module: The calling layer, with `is_causal` for where that argument is None.
        query: (1, n_heads, n_tokens, width).
        key: (1, n_heads or a divisor of it, n_tokens, width).
        value: As `key`.
        attention_mask: Not used.
        cu_seq_lens_q: int32 (n_documents + 1,), start of each document, and end of the last one.
        max_length_q: Tokens of the longest document.
        scaling: Factor of the scores; None is 1 / sqrt(width).
        sliding_window: Smallest distance between tokens that do not attend to each other; None has no limit.
        is_causal: Whether a token does not attend to later ones.
        others: Further arguments, without effect or None, 0 or False.

    Returns:
        (1, n_tokens, n_heads, width), and None in place of attention weights.

    Raises:
        NotImplementedError: `others` contains something else.
    """
    for name, given in others.items():
        if name not in WITHOUT_EFFECT and given is not None and (isinstance(given, torch.Tensor) or given):
            raise NotImplementedError(f"attention with {name}")
    is_causal = bool(getattr(module, "is_causal", False) if is_causal is None else is_causal)
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
    """Returns (1, n_tokens, n_heads, width); a window of -1 has no limit."""
    query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    # Earlier versions of PyTorch lack some options, so only the needed ones are passed.
    options: dict[str, Any] = {} if scaling == query.shape[-1] ** -0.5 else {"scale": scaling}
    if is_causal or window >= 0:
        options["window_size"] = (window, 0 if is_causal else window)
    if query.shape[1] != key.shape[1]:
        options["enable_gqa"] = True
    attended = varlen_attn(query, key, value, cu_seq_lens, cu_seq_lens, max_length, max_length, **options)
    return cast(torch.Tensor, attended)[None]


# An operator, so that torch.compile does not trace its loop, whose length depends on the documents. PyTorch reads the
# operator's schema off the annotations, hence they are spelled out here as well as above.
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
    """Returns (1, n_tokens, n_heads, width); a window of -1 has no limit."""
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
    # The Cauchy-Schwarz inequality bounds the largest score. If no score is large, a softmax need not subtract the
    # largest of each row, which saves a pass over all scores. Powers of 2 are faster than powers of e.
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
