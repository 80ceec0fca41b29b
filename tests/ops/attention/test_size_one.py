"""A dimension of size 1 may have any stride."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import xattn

SIZES = {"batch": 0, "seqlen": 1, "nheads": 2, "headdim": 3}


def strided(x: Tensor, stride: int) -> Tensor:
    """The same numbers, each dimension of size 1 with this stride."""
    strides = [stride if size == 1 else own for size, own in zip(x.shape, x.stride(), strict=True)]
    return x.as_strided(x.shape, strides)


def inputs(single: str, seqlen: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seqlen)
    shape = [2, seqlen, 4, 8]
    shape[SIZES[single]] = 1
    return [torch.randn(shape, generator=generator) for _ in range(3)]


CALLS: dict[str, dict[str, Any]] = {
    "full": {},
    "causal": {"causal": True},
    "mask": {"mask": torch.tensor(True)},
    "causal mask": {"causal": True, "mask": torch.tensor([[[True]]])},
    "window": {"window": (2, 0)},
    "lse": {"return_lse": True},
    "softcap": {"softcap": 2.0},
}


@pytest.mark.parametrize("seqlen", [9, 40])
@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("single", SIZES)
def test_any_stride(single: str, name: str, seqlen: int) -> None:
    options = CALLS[name]
    plain = [x.double().requires_grad_() for x in inputs(single, seqlen)]
    want = xattn.attention(*plain, **options, backend="reference")
    out = want.out if isinstance(want, xattn.AttentionOutput) else want
    want_grads = torch.autograd.grad(out.sum(), plain)
    for backend in ("sdpa", "reference"):
        for stride in (0, 1, 7, 100_003):
            q, k, v = (strided(x, stride).requires_grad_() for x in inputs(single, seqlen))
            with torch.no_grad():
                torch.testing.assert_close(
                    xattn.attention(q, k, v, **options, backend=backend), want, check_dtype=False, rtol=1e-5, atol=1e-5
                )
            got = xattn.attention(q, k, v, **options, backend=backend)
            out = got.out if isinstance(got, xattn.AttentionOutput) else got
            assert out.is_contiguous()
            grads = torch.autograd.grad(out.sum(), (q, k, v))
            torch.testing.assert_close(grads, want_grads, check_dtype=False, rtol=1e-4, atol=1e-5)


def test_grouped_heads_of_one_dimension() -> None:
    # Of a (batch, 1, seqlen, nheads) tensor, as a model with scalar heads has it.
    q, k, v = (torch.randn(2, 1, 9, n).permute(0, 2, 3, 1) for n in (4, 2, 2))
    want = xattn.attention(q.double(), k.double(), v.double(), causal=True, backend="reference")
    torch.testing.assert_close(xattn.attention(q, k, v, causal=True), want, check_dtype=False, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("single", SIZES)
def test_any_stride_rotated(single: str) -> None:
    q, k, _ = inputs(single, 6) if single != "headdim" else [torch.randn(2, 6, 1, 2) for _ in range(3)]
    angle = torch.randn(q.shape[1], q.shape[3] // 2)
    want = xattn.apply_rotary(q, k, angle.cos(), angle.sin())
    for stride in (0, 7):
        tables = strided(angle.cos(), stride), strided(angle.sin(), stride)
        torch.testing.assert_close(xattn.apply_rotary(strided(q, stride), strided(k, stride), *tables), want)


@pytest.mark.parametrize("single", [0, 1, 2])
def test_any_stride_packed(single: int) -> None:
    shape = [7, 4, 8]
    shape[single] = 1
    q, k, v = (torch.randn(shape) for _ in range(3))
    cu_seqlens = torch.tensor([0, min(3, shape[0]), shape[0]], dtype=torch.int32)
    want = xattn.varlen_attention(q, k, v, cu_seqlens, causal=True)
    for stride in (0, 7):
        inputs = [strided(x, stride) for x in (q, k, v)]
        got = xattn.varlen_attention(inputs[0], inputs[1], inputs[2], cu_seqlens, causal=True)
        torch.testing.assert_close(got, want)
