"""aiter's HSTU, forward and backward, against `reference` in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import xattn


def ints(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


CALLS: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "plain": ((70, 0, 5), {}),
    "targets": ((70, 33, 5), {"num_targets": ints(40, 0, 5)}),
    "a limit": ((70, 33), {"num_targets": ints(34, 2), "max_attn_len": 7}),
    "contextual": ((70, 33), {"num_targets": ints(3, 2), "max_attn_len": 9, "contextual_seqlen": 5}),
    "many contextual": ((140,), {"contextual_seqlen": 64, "max_attn_len": 60}),
    "one contextual": ((33,), {"contextual_seqlen": 1}),
    "half the norm": ((70,), {"norm": 65.0, "max_seqlen": 70}),
}


def tensors(lengths: tuple[int, ...], headdim_v: int = 16) -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    starts = ints(0, *torch.tensor(lengths).cumsum(0).tolist())
    q, k, v = (torch.randn(sum(lengths) + 3, 2, width) for width in (32, 32, headdim_v))
    for x in (q, k, v):
        x[-3:] = torch.nan  # the rows of no sequence
    return q, k, v, starts


@pytest.mark.parametrize("name", CALLS)
def test_the_answer_and_its_gradients_are_the_contracts(name: str) -> None:
    lengths, options = CALLS[name]
    *qkv, starts = tensors(lengths)
    options = {"norm": 160.0, "scale": 0.3, **options}
    found = []
    for backend, dtype in (("aiter-triton", torch.float32), ("reference", torch.float64)):
        leaves = [x.detach().to(dtype).requires_grad_() for x in qkv]
        out = xattn.hstu_attention(*leaves, starts, backend=backend, **options)
        dout = torch.linspace(-1, 1, out.numel()).view(out.shape).to(dtype)
        found.append([out, *torch.autograd.grad(out, leaves, dout)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-6)


def test_full_sequences_forward() -> None:
    args = tensors((40, 7))
    options: dict[str, Any] = {"norm": 40.0, "scale": 0.3, "causal": False}
    got = xattn.hstu_attention(*args, backend="aiter-triton", **options)
    want = xattn.hstu_attention(*args, backend="reference", **options)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def aiters_gradients(lengths: tuple[int, ...], causal: bool, limit: int, contextual: int) -> bool:
    """Whether those that aiter computes by itself are right."""
    from xattn_rocm.aiter_triton.hstu_attention.gradients import Options, backward
    from xattn_rocm.installation import usable

    q, k, v, starts = tensors(lengths)
    total = int(starts[-1])
    leaves = [x[:total].double().requires_grad_() for x in (q, k, v)]
    out = xattn.hstu_attention(
        *leaves, starts, norm=160.0, scale=0.3, causal=causal, max_attn_len=limit or None,
        contextual_seqlen=contextual, backend="reference",
    )  # fmt: skip
    want = torch.autograd.grad(out.sum(), leaves)
    options = Options(usable().layout, 160, False, 0.3, causal, limit, contextual)
    got = backward(torch.ones(out.shape), q[:total], k[:total], v[:total], starts, None, options)
    return all(torch.allclose(x.double(), y, rtol=1e-4, atol=1e-5) for x, y in zip(got, want, strict=True))


def test_the_gradients_that_are_declined_are_wrong_in_aiter() -> None:
    """hstu-full-gradients, hstu-contextual-limit-gradients: where this fails, aiter has mended it."""
    assert aiters_gradients((80,), True, 0, 0)
    assert not aiters_gradients((80,), False, 0, 0)
    assert aiters_gradients((150,), True, 64, 64)
    assert not aiters_gradients((150,), True, 64, 66)
