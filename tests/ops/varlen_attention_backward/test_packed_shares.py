"""Packed sequences: of all keys the share is autograd's gradient, and those of a ring add up to it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import xattn

QUERIES, KEYS = (4, 0, 3, 1, 2), (6, 3, 3, 0, 6)
CU_Q, CU_K = (torch.tensor([0, *lengths]).cumsum(0).int() for lengths in (QUERIES, KEYS))
SLOPES = 0.5 ** torch.arange(1.0, 21.0).view(5, 4)
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"causal": True},
    "window": {"window": (2, 1), "scale": 0.3},
    "softcap": {"softcap": 1.5, "causal": True},
    "slopes": {"alibi_slopes": SLOPES},
    "offsets": {"causal": True, "align": torch.tensor([1, 0, -1, 5, 3], dtype=torch.int32)},
}
by_backend = pytest.mark.parametrize("backend", ["reference", "sdpa"])
by_name = pytest.mark.parametrize("name", OPTIONS)


def tensors() -> tuple[Tensor, Tensor, Tensor]:
    """With two rows of padding, all NaN."""
    generator = torch.Generator().manual_seed(7)
    shapes = ((12, 4, 8), (20, 2, 8), (20, 2, 5))
    q, k, v = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    q[10:], k[18:], v[18:] = torch.nan, torch.nan, torch.nan
    return q, k, v


def whole(options: dict[str, Any]) -> tuple[Tensor, ...]:
    """dout, out, lse, and autograd's gradients of all keys."""
    leaves = [x.requires_grad_() for x in tensors()]
    attend: Any = xattn.varlen_attention
    out, lse = attend(
        *leaves, CU_Q, CU_K, **options, sinks=torch.linspace(-1, 1, 4), return_lse=True, backend="reference"
    )
    dout = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view(out.shape)
    return dout, out.detach(), lse.detach(), *torch.autograd.grad(out, leaves, dout)


def close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=2e-6, atol=2e-6)


@by_backend
@by_name
def test_all_keys_give_autograds_gradient_and_padding_none(name: str, backend: str) -> None:
    dout, out, lse, *want = whole(OPTIONS[name])
    dout[10:], out[10:] = torch.nan, torch.nan
    got = xattn.varlen_attention_backward(dout, *tensors(), out, lse, CU_Q, CU_K, **OPTIONS[name], backend=backend)
    for one, other in zip(got, want, strict=True):
        close(one, other)
    assert not any(x[end:].any() for x, end in zip(got, (10, 18, 18), strict=True))


@by_backend
@by_name
def test_a_ring_of_three_adds_up(name: str, backend: str) -> None:
    """Part n has the keys of its third of each sequence."""
    dout, out, lse, *want = whole(OPTIONS[name])
    q, k, v = tensors()
    dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    thirds = torch.tensor(KEYS) // 3
    cu = torch.cat((torch.zeros(1), thirds.cumsum(0))).int()
    align = OPTIONS[name].get("align", (CU_K.diff() - CU_Q.diff()).int())
    for n in range(3):
        which = torch.cat([
            start + n * third + torch.arange(int(third)) for start, third in zip(CU_K[:-1], thirds, strict=True)
        ])  # fmt: skip
        one, *others = xattn.varlen_attention_backward(
            dout, q, k[which], v[which], out, lse, CU_Q, cu,
            **{**OPTIONS[name], "align": (align - n * thirds).int()}, backend=backend,
        )  # fmt: skip
        dq += one
        for total, other in zip((dk, dv), others, strict=True):
            total[which] = other
    for got, wanted in zip((dq, dk, dv), want, strict=True):
        close(got, wanted)
