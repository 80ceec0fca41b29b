"""`varlen_attention` by `aiter` over the stand-in: right where a call that passes everything on is wrong."""

from __future__ import annotations

import math
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

import xattn
from xattn import AttentionOutput

GFX9 = pytest.mark.parametrize("arch", ["gfx942", "gfx950"], indirect=True)
ONE = pytest.mark.parametrize("arch", ["gfx942"], indirect=True)
# An empty sequence, one without keys, one of more queries than keys, and rows of nobody.
STARTS_Q, STARTS_K = (torch.tensor(x, dtype=torch.int32) for x in ([0, 3, 3, 5, 12], [0, 9, 14, 14, 18]))
QKV = tuple[Tensor, Tensor, Tensor]
SINKS = torch.tensor([3.0, -1.0, 0.5, 2.0])


def qkv(headdim: int = 128, headdim_v: int | None = None, dtype: torch.dtype = torch.bfloat16) -> QKV:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(14, 4, headdim, generator=generator).to(dtype)
    k, v = (torch.randn(20, 2, size, generator=generator).to(dtype) for size in (headdim, headdim_v or headdim))
    return q, k, v


def called(backend: str, tensors: QKV, **options: Any) -> AttentionOutput:
    found: AttentionOutput = xattn.varlen_attention(
        *tensors, STARTS_Q, STARTS_K, backend=backend, return_lse=True, **options
    )
    return found


def check(tensors: QKV, **options: Any) -> AttentionOutput:
    found, want = called("aiter", tensors, **options), called("reference", tensors, **options)
    torch.testing.assert_close(found.out, want.out, rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(found.lse, want.lse, rtol=1e-3, atol=1e-3)
    return found


def naive(tensors: QKV, **named: Any) -> Any:
    function = sys.modules["aiter"].flash_attn_varlen_func
    return function(*tensors, STARTS_Q, STARTS_K, 7, 9, return_lse=True, **named)


@GFX9
def test_sinks_reach_ck_where_v3_drops_them(arch: str) -> None:
    """varlen-v3-drops-sinks"""
    with_sinks, without = (naive(qkv(), causal=True, **more)[0] for more in ({"sink_ptr": SINKS}, {}))
    assert torch.equal(with_sinks[:3], without[:3])
    check(qkv(), causal=True, sinks=SINKS)
    check(qkv(), sinks=SINKS)


@GFX9
def test_rows_that_see_no_key_and_rows_of_nobody(arch: str) -> None:
    """varlen-rows-of-nobody, dead-lse-is-cks-alone: by v3, and by CK at another headdim."""
    out, lse = naive(qkv(), causal=True)
    assert out[12:].isnan().all()
    assert lse[:, 3:8].isnan().all()
    for headdim in (128, 64):
        for causal in (True, False):
            found = check(qkv(headdim), causal=causal)
            assert (found.out[12:] == 0).all()
            assert (found.lse[:, 3:5] == -math.inf).all()


@ONE
def test_a_sequence_begins_at_the_first_key_that_its_windows_show(arch: str) -> None:
    """varlen-hidden-nan"""
    q, k, v = qkv()
    k[:5], v[:5] = math.nan, math.nan  # sequence 0 has 3 queries and 9 keys
    assert naive((q, k, v), causal=True, window_size=(1, 0))[0][:3].isnan().all()
    found = check((q, k, v), causal=True, window=(1, 0))
    assert not found.out.isnan().any()
    check(qkv(), window=(2, 1))
    check(qkv(), window=(0, 0))
    check(qkv(), window=(None, 40))


@ONE
@pytest.mark.parametrize(
    "options",
    [
        {"softcap": 1.5, "causal": True},
        {"alibi_slopes": torch.tensor([0.5, 0.25, 0.125, 0.0625]), "causal": True},
        {"alibi_slopes": torch.rand(4, 4, generator=torch.Generator().manual_seed(1)), "causal": True},
        {"causal": True, "scale": 0.3},
    ],
    ids=["softcap", "alibi", "alibi of sequences", "scale"],
)
def test_options(arch: str, options: dict[str, Any]) -> None:
    check(qkv(), **options)
    check(qkv(headdim=60, headdim_v=36, dtype=torch.float16), **options)


@pytest.mark.parametrize("arch", ["gfx942", "gfx950", "gfx90a"], indirect=True)
@pytest.mark.parametrize("causal", [True, False])
def test_gradients_are_zero_where_nothing_is_written(arch: str, causal: bool) -> None:
    q, k, v = qkv(dtype=torch.float16)
    tensors = q.requires_grad_(), k.requires_grad_(), v.requires_grad_()
    dout = torch.randn(14, 4, 128, generator=torch.Generator().manual_seed(2)).half()
    grads = {}
    for backend in ("aiter", "reference"):
        out = xattn.varlen_attention(*tensors, STARTS_Q, STARTS_K, causal=causal, backend=backend)
        grads[backend] = torch.autograd.grad(out, tensors, dout)
    for found, want in zip(*grads.values(), strict=True):
        torch.testing.assert_close(found, want, rtol=2e-2, atol=2e-2)
    dq, dk, _ = grads["aiter"]
    assert (dq[12:] == 0).all()
    assert (dk[9:14] == 0).all()  # keys of a sequence without queries


@ONE
def test_what_is_declined_says_why(arch: str) -> None:
    (q, k, v), one = qkv(), torch.tensor([0, 1, 2], dtype=torch.int32)
    with pytest.raises(xattn.UnsupportedError, match="A bound of 2 holds as well"):
        xattn.varlen_attention(q[:2], k[:2], v[:2], one, backend="aiter")
    with pytest.raises(xattn.UnsupportedError, match="nothing to the left, in training"):
        called("aiter", (q.requires_grad_(), k, v), causal=True, window=(2, 0))
    with pytest.raises(xattn.UnsupportedError, match="off beside alibi_slopes"):
        called("aiter", qkv(), causal=True, softcap=1.0, alibi_slopes=torch.ones(4))


@GFX9
def test_the_kernel_is_named(arch: str) -> None:
    def named(**options: Any) -> str:
        given = (*qkv(), STARTS_Q, STARTS_K)
        return str(xattn.explain(xattn.varlen_attention, *given, backend="aiter", **options))

    assert "aiter.flash_attn_varlen_func (ASM v3)" in named(causal=True)
    assert "aiter.flash_attn_varlen_func (CK)" in named(sinks=SINKS)
