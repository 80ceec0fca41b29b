"""Calls of attention, one for each way through the sdpa backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import xattn

# One entry for each way a call can take through the sdpa backend: one call of torch's attention, its decode fold, tiles
# with and without a merge, blocks of matmuls.
CALLS: dict[str, dict[str, Any]] = {
    "full": {},
    "causal": {"causal": True},
    "top_left": {"causal": True, "align": "top_left"},
    "mask": {"mask": torch.tensor([True, True, False, True]).view(1, 4, 1, 1)},
    "window": {"causal": True, "window": (8, 0)},
    "sinks": {"causal": True, "sinks": torch.linspace(-1, 1, 4)},
    "alibi": {"causal": True, "alibi_slopes": torch.tensor([0.5, 0.25, 0.125, 0.0625])},
    "softcap": {"causal": True, "softcap": 5.0},
    "seqlens_k": {"causal": True, "seqlens_k": torch.tensor([7, 12])},
    "lse": {"causal": True, "return_lse": True},
}


def qkv(seqlen_q: int, seqlen_k: int | None = None, grad: bool = True) -> list[Tensor]:
    torch.manual_seed(seqlen_q)
    shapes = ((seqlen_q, 4), (seqlen_k or seqlen_q, 2), (seqlen_k or seqlen_q, 2))
    return [torch.randn(2, s, n, 16, dtype=torch.float64, requires_grad=grad) for s, n in shapes]


def call(*arguments: Any) -> Tensor:
    """The output for q, k, v and options, with lse in it where it is asked for, so that gradients flow through both."""
    *inputs, options = arguments
    result: Tensor | xattn.AttentionOutput = xattn.attention(*inputs, **options)
    if isinstance(result, xattn.AttentionOutput):
        return result.out + result.lse.transpose(1, 2).unsqueeze(-1)
    return result


def with_grads(function: Callable[..., Tensor], inputs: list[Tensor]) -> tuple[Tensor, ...]:
    out = function(*inputs)
    return out, *torch.autograd.grad(out, inputs, torch.ones_like(out).cumsum(1))


def close(got: tuple[Tensor, ...], want: tuple[Tensor, ...]) -> None:
    for ours, theirs in zip(got, want, strict=True):
        # lse is float32 whatever the dtype, and so is what flows through it.
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
