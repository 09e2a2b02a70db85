from collections.abc import Sequence
from itertools import accumulate, pairwise

import pytest
import torch
from torch.nn.attention import varlen

from mlfilter_core.encoder import attention
from mlfilter_core.encoder.attention import can_attend_unpadded, unpadded_attention

LENGTHS = [7, 1, 40, 16]
WIDTH = 8
CPU = torch.device("cpu")
HAS_CUDA = torch.cuda.is_available()
DEVICES = [CPU, pytest.param(torch.device("cuda"), marks=pytest.mark.skipif(not HAS_CUDA, reason="no CUDA GPU"))]


class Layer(torch.nn.Module):
    """A layer that calls the attention."""

    def __init__(self, is_causal: bool) -> None:
        super().__init__()
        self.is_causal = is_causal


def heads(n_heads: int, scale: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(n_heads)
    return torch.randn(1, n_heads, sum(LENGTHS), WIDTH, generator=generator) * scale


def expected(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float, is_causal: bool, window: int | None
) -> torch.Tensor:
    """Attention by its definition, in float64, with one score for each pair of tokens of the whole row."""
    n_groups = query.shape[1] // key.shape[1]
    query, key, value = (tensor[0].double().cpu() for tensor in (query, key, value))
    key, value = key.repeat_interleave(n_groups, 0), value.repeat_interleave(n_groups, 0)
    number = torch.arange(len(LENGTHS)).repeat_interleave(torch.tensor(LENGTHS))
    position = torch.cat([torch.arange(length) for length in LENGTHS])
    distance = position[:, None] - position
    is_seen = number[:, None] == number
    if is_causal:
        is_seen &= distance >= 0
    if window is not None:
        is_seen &= distance.abs() < window
    scores = (query @ key.transpose(1, 2) * scaling).masked_fill(~is_seen, -torch.inf)
    return (scores.softmax(dim=-1) @ value).transpose(0, 1)[None]


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    is_causal: bool = False,
    window: int | None = None,
    scaling: float = 0.3,
) -> torch.Tensor:
    bounds = torch.tensor([0, *accumulate(LENGTHS)], dtype=torch.int32, device=query.device)
    attended, weights = unpadded_attention(
        Layer(is_causal),
        query,
        key,
        value,
        None,
        cu_seq_lens_q=bounds,
        max_length_q=max(LENGTHS),
        scaling=scaling,
        sliding_window=window,
        dropout=0.0,
    )
    assert weights is None
    return attended


@pytest.mark.parametrize("device", DEVICES, ids=str)
@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("n_key_heads", [4, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_token_sees_its_own_document_and_nothing_else(
    device: torch.device, dtype: torch.dtype, n_key_heads: int, is_causal: bool, window: int | None
) -> None:
    if not can_attend_unpadded(device, dtype):
        pytest.skip("no kernel for this dtype")
    query = heads(4).to(device, dtype)
    key, value = (heads(n_key_heads, scale).to(device, dtype) for scale in (1.0, 2.0))
    attended = attend(query, key, value, is_causal, window)
    assert attended.shape == (1, sum(LENGTHS), 4, WIDTH)
    tolerance = 1e-5 if dtype == torch.float32 else 0.03
    right = expected(query, key, value, 0.3, is_causal, window)
    torch.testing.assert_close(attended.double().cpu(), right, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("scale", [0.01, 1.0, 3.0, 30.0, 1e4])
def test_scores_of_any_size_give_the_weights_of_a_softmax(scale: float) -> None:
    query, key, value = heads(4, scale).bfloat16(), heads(4, scale).bfloat16(), heads(4).bfloat16()
    attended = attend(query, key, value, scaling=1.0)
    assert attended.isfinite().all()
    # The rounding of large scores to bfloat16 decides which weight is the largest: compare with rounded scores.
    scores = [
        torch.bmm(query[0, :, start:end], key[0, :, start:end].transpose(1, 2)).double().softmax(dim=-1)
        @ value[0, :, start:end].double()
        for start, end in pairwise([0, 7, 8, 48, 64])
    ]
    torch.testing.assert_close(attended[0].double(), torch.cat(scores, dim=1).transpose(0, 1), atol=0.03, rtol=0)


def test_long_documents_take_the_kernel_whose_memory_does_not_grow_with_the_square(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    query, key, value = (heads(4, scale).bfloat16() for scale in (1.0, 1.1, 1.2))
    products = attend(query, key, value)
    monkeypatch.setattr(attention, "MAX_PRODUCTS_TOKENS", 39)
    fused = attend(query, key, value)
    assert not torch.equal(products, fused), "both took the same way"
    torch.testing.assert_close(products, fused, atol=0.03, rtol=0)


@pytest.mark.parametrize("window", [-1, 4])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_compiled_around_it_knows_its_shape_and_strides(
    dtype: torch.dtype, is_causal: bool, window: int
) -> None:
    query, key, value = (heads(4, scale).to(dtype) for scale in (1.0, 1.1, 1.2))
    arguments = (query, key, value, torch.tensor([0, 7, 64], dtype=torch.int32), 57, is_causal, window, 0.3)
    torch.library.opcheck(torch.ops.mlfilter.attend_on_cpu, arguments)


@pytest.fixture(scope="module")
def varlen_attn_on_cpu() -> None:
    """A CPU kernel for PyTorch's operator, which has none, written from its documentation."""

    @varlen._varlen_attn.register_kernel("cpu")
    def _(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        cu_seq_q: torch.Tensor,
        cu_seq_k: torch.Tensor,
        max_q: int,
        max_k: int,
        is_causal: bool = False,
        scale: float | None = None,
        window_size: Sequence[int] = (-1, -1),
        enable_gqa: bool = False,
        *ignored: object,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        left, right = (1 << 30 if side < 0 else side for side in window_size)
        attended = torch.empty_like(query)
        for start, end in pairwise(cu_seq_q.tolist()):
            assert end - start <= max_q
            position = torch.arange(end - start)
            ahead = position - position[:, None]
            attended[start:end] = torch.nn.functional.scaled_dot_product_attention(
                *(tensor[start:end].transpose(0, 1) for tensor in (query, key, value)),
                attn_mask=(ahead >= -left) & (ahead <= right),
                scale=scale,
                enable_gqa=enable_gqa,
            ).transpose(0, 1)
        return attended, torch.zeros(query.shape[1], len(query)), torch.zeros(2, dtype=torch.uint64)


@pytest.mark.parametrize("scaling", [0.3, WIDTH**-0.5])
@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("n_key_heads", [4, 2])
@pytest.mark.usefixtures("varlen_attn_on_cpu")
def test_a_gpu_is_asked_for_the_same_attention(
    monkeypatch: pytest.MonkeyPatch, n_key_heads: int, is_causal: bool, window: int | None, scaling: float
) -> None:
    monkeypatch.setattr(attention, "_attend_on_cpu", attention._attend_on_gpu)
    query, (key, value) = heads(4), (heads(n_key_heads, scale) for scale in (1.0, 2.0))
    attended = attend(query, key, value, is_causal, window, scaling)
    right = expected(query, key, value, scaling, is_causal, window)
    torch.testing.assert_close(attended.double(), right, atol=1e-5, rtol=1e-5)


def test_there_is_no_kernel_for_other_devices() -> None:
    assert can_attend_unpadded(CPU, torch.float32)
    assert not can_attend_unpadded(torch.device("mps"), torch.bfloat16)


@pytest.mark.parametrize("others", [{"softcap": 50.0}, {"s_aux": torch.zeros(4)}, {"dropout": 0.1}])
def test_an_argument_that_could_change_the_result_is_refused(others: dict[str, object]) -> None:
    query, bounds = heads(4), torch.tensor([0, *accumulate(LENGTHS)], dtype=torch.int32)
    with pytest.raises(NotImplementedError, match=f"attention with {next(iter(others))}"):
        unpadded_attention(
            Layer(False), query, query, query, None, cu_seq_lens_q=bounds, max_length_q=max(LENGTHS), **others
        )


def test_an_argument_overrides_what_the_layer_says_of_causality() -> None:
    query, bounds = heads(4), torch.tensor([0, *accumulate(LENGTHS)], dtype=torch.int32)
    common = {"cu_seq_lens_q": bounds, "max_length_q": max(LENGTHS)}
    causal, _ = unpadded_attention(Layer(True), query, query, query, None, **common)
    forced, _ = unpadded_attention(Layer(False), query, query, query, None, is_causal=True, **common)
    assert torch.equal(causal, forced)
