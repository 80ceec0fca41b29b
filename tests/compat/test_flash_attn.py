"""flash-attn's names: their arguments are xattn's by other names, none is dropped, and what comes back is theirs."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import xattn
from xattn.compat import flash_attn as compat

NHEADS = 4
SLOPES = torch.linspace(0.1, 0.4, NHEADS)
CU_Q = torch.tensor([0, 3, 3, 9], dtype=torch.int32)
CU_K = torch.tensor([0, 8, 10, 17], dtype=torch.int32)

OPTIONS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    ({"causal": True}, {"causal": True}),
    ({"softmax_scale": 0.7}, {"scale": 0.7}),
    ({"softmax_scale": 0.0}, {"scale": 0.0}),
    ({"window_size": (3, 0)}, {"window": (3, 0)}),
    ({"window_size": (-1, 2)}, {"window": (None, 2)}),
    ({"window_size": (0, 0)}, {"window": (0, 0)}),
    ({"window_size": (4, -1), "causal": True}, {"window": (4, None), "causal": True}),
    ({"window_size": (2, 5), "causal": True}, {"window": (2, 0)}),
    ({"softcap": 3.0}, {"softcap": 3.0}),
    ({"alibi_slopes": SLOPES}, {"alibi_slopes": SLOPES}),
    ({"deterministic": True}, {}),
]

each_option = pytest.mark.parametrize(("theirs", "ours"), OPTIONS, ids=str)


def qkv(nheads_k: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, seqlen, heads, 16) for seqlen, heads in ((9, NHEADS), (17, nheads_k), (17, nheads_k)))
    return q, k, v


def packed(nheads_k: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = qkv(nheads_k)
    return q[0], k[0], v[0]


def close(got: Any, want: Any) -> None:
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


@each_option
def test_padded(theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    q, k, v = qkv()
    want = xattn.attention(q, k, v, **ours, return_lse=True)
    assert not ours or not torch.allclose(want.out, xattn.attention(q, k, v))
    close(compat.flash_attn_func(q, k, v, **theirs), want.out)
    close(compat.flash_attn_kvpacked_func(q, torch.stack([k, v], 2), **theirs), want.out)
    out, lse, probabilities = compat.flash_attn_func(q, k, v, **theirs, return_attn_probs=True)
    close((out, lse), (want.out, want.lse))
    assert probabilities.numel() == 0
    q, k, v = (x[:, :9] for x in qkv(NHEADS))
    qkv_packed = torch.stack([q, k, v], 2)
    close(compat.flash_attn_qkvpacked_func(qkv_packed, **theirs), xattn.attention(q, k, v, **ours))


@each_option
def test_packed(theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    q, k, v = packed()
    want = xattn.varlen_attention(q, k, v, CU_Q, CU_K, **ours, return_lse=True)
    lengths = CU_Q, CU_K, 6, 8
    close(compat.flash_attn_varlen_func(q, k, v, *lengths, **theirs), want.out)
    close(compat.flash_attn_varlen_kvpacked_func(q, torch.stack([k, v], 1), *lengths, **theirs), want.out)
    out, lse, probabilities = compat.flash_attn_varlen_func(q, k, v, *lengths, **theirs, return_attn_probs=True)
    close((out, lse), (want.out, want.lse))
    assert probabilities.numel() == 0
    q, k, v = packed(NHEADS)
    alike = torch.stack([q, k[:9], v[:9]], 1)
    want_alike = xattn.varlen_attention(q, k[:9], v[:9], CU_Q, **ours)
    close(compat.flash_attn_varlen_qkvpacked_func(alike, CU_Q, 6, **theirs), want_alike)


@each_option
def test_pages(theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    """The same keys in pages of 4, whose rest is NaN, give what they give packed."""
    q, k, v = packed()
    pages = torch.full((2, 9, 4, 2, 16), torch.nan)
    table = torch.tensor([[5, 1], [0, 7], [2, 8]], dtype=torch.int32)
    for row in range(3):
        for place in range(int(CU_K[row + 1] - CU_K[row])):
            block = int(table[row, place // 4])
            pages[0, block, place % 4], pages[1, block, place % 4] = k[CU_K[row] + place], v[CU_K[row] + place]
    got = compat.flash_attn_varlen_func(q, pages[0], pages[1], CU_Q, CU_K, 6, 8, **theirs, block_table=table)
    close(got, xattn.varlen_attention(q, k, v, CU_Q, CU_K, **ours))


def test_a_query_that_sees_no_key_has_an_lse_of_plus_infinity() -> None:
    q, k, v = qkv()
    out, lse, _ = compat.flash_attn_func(q, k[:, :4], v[:, :4], causal=True, return_attn_probs=True)
    assert (lse[:, :, :5] == math.inf).all()
    assert lse[:, :, 5:].isfinite().all()
    assert (out[:, :5] == 0).all()
    _, lse, _ = compat.flash_attn_varlen_func(
        *packed(), CU_K.clamp(max=9), CU_Q, 8, 6, causal=True, return_attn_probs=True
    )
    assert (lse[:, 8:9] == math.inf).all()


def test_gradients_reach_the_packed_tensor() -> None:
    q, k, v = (x[:, :9] for x in qkv(NHEADS))
    one = torch.stack([q, k, v], 2).requires_grad_()
    out = compat.flash_attn_qkvpacked_func(one, causal=True)
    assert isinstance(out, Tensor)
    out.square().sum().backward()
    three = [x.clone().requires_grad_() for x in (q, k, v)]
    xattn.attention(*three, causal=True).square().sum().backward()
    close(one.grad.unbind(2) if one.grad is not None else None, tuple(x.grad for x in three))


def test_dropout_is_asked_for() -> None:
    q, k, _ = qkv()
    out = compat.flash_attn_func(q, k, torch.ones_like(k), 0.5)
    assert isinstance(out, Tensor)
    assert out.std() > 0.05


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: compat.flash_attn_func(*qkv(), 0.5, return_attn_probs=True), "return_attn_probs: "),
        (lambda: compat.flash_attn_varlen_func(*packed(), CU_Q, CU_K, 6, 8, 0.5), "dropout_p: "),
        (lambda: compat.flash_attn_func(*qkv(), alibi_slopes=-SLOPES), "alibi_slopes: "),
        (lambda: compat.flash_attn_varlen_func(*packed(), CU_Q, CU_K, 2, 8), "max_seqlen_q: "),
    ],
)
def test_what_xattn_has_no_word_for_is_an_error(call: Callable[[], object], said: str) -> None:
    with pytest.raises(xattn.InvalidArgumentError, match=f"^{said}"):
        call()


# flash-attn 2.8.3, flash_attn/flash_attn_interface.py: each function's parameters in order, with their defaults.
_COMMON = (
    "dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0, alibi_slopes=None, "
    "deterministic=False, return_attn_probs=False"
)
_LENGTHS = "cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k"
SIGNATURES = {
    "flash_attn_func": f"q, k, v, {_COMMON}",
    "flash_attn_kvpacked_func": f"q, kv, {_COMMON}",
    "flash_attn_qkvpacked_func": f"qkv, {_COMMON}",
    "flash_attn_varlen_func": f"q, k, v, {_LENGTHS}, {_COMMON}, block_table=None",
    "flash_attn_varlen_kvpacked_func": f"q, kv, {_LENGTHS}, {_COMMON}",
    "flash_attn_varlen_qkvpacked_func": f"qkv, cu_seqlens, max_seqlen, {_COMMON}",
    "flash_attn_with_kvcache": (
        "q, k_cache, v_cache, k=None, v=None, rotary_cos=None, rotary_sin=None, cache_seqlens=None, "
        "cache_batch_idx=None, cache_leftpad=None, block_table=None, softmax_scale=None, causal=False, "
        "window_size=(-1, -1), softcap=0.0, rotary_interleaved=True, alibi_slopes=None, num_splits=0, "
        "return_softmax_lse=False"
    ),
}


def test_the_signatures_are_flash_attns() -> None:
    def shown(function: Callable[..., Any]) -> str:
        each = inspect.signature(function).parameters.values()
        return ", ".join(p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in each)

    assert {name: shown(getattr(compat, name)) for name in compat.__all__} == SIGNATURES
