"""aiter's HSTU forward, and its gradients as an autograd function. aiter's own one computes them in inference mode."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from xattn.plugin import derivatives
from xattn_rocm import vendor

MODULES = {"flat": "aiter.ops.triton.hstu_attention", "attention": "aiter.ops.triton.attention.hstu_attention"}


class Options(NamedTuple):
    """n: aiter's N. twice: what it returns is half of what was asked for."""

    layout: str
    n: int
    twice: bool
    scale: float
    causal: bool
    max_attn_len: int
    contextual_seqlen: int


def forward(q: Tensor, k: Tensor, v: Tensor, starts: Tensor, targets: Tensor | None, options: Options) -> Tensor:
    """out (total, nheads, headdim_v), contiguous."""
    module = vendor.module(MODULES[options.layout])
    out: Tensor = module.triton_hstu_attention_fwd(
        options.n, options.scale, q, k, v, starts, options.causal, targets, options.max_attn_len,
        options.contextual_seqlen, None,
    )  # fmt: skip
    out = out.contiguous()
    if options.twice:
        out *= 2
    return _without_padding(out, starts)


def backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, starts: Tensor, targets: Tensor | None, options: Options
) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = (torch.zeros(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    module = vendor.module(MODULES[options.layout])
    module.triton_hstu_attention_bwd(
        2 * dout if options.twice else dout, q, k, v, dq, dk, dv, starts, targets, options.n, options.scale,
        options.max_attn_len, options.causal, options.contextual_seqlen, None,
    )  # fmt: skip
    return dq, dk, dv


def _without_padding(out: Tensor, starts: Tensor) -> Tensor:
    """With 0 in the rows of no sequence, which the kernel leaves as they were allocated. In place."""
    row = torch.arange(out.shape[0], device=out.device)
    return out.masked_fill_((row >= starts[-1])[:, None, None], 0.0)


class Attend(Function):
    """(q, k, v, starts, targets, options) -> out, differentiable in q, k and v."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, starts: Tensor, targets: Tensor | None, options: Options
    ) -> Tensor:
        ctx.save_for_backward(q, k, v, starts, targets)
        ctx.options = options
        return forward(q, k, v, starts, targets, options)

    @staticmethod
    @derivatives.first_alone("aiter-triton")
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, starts, targets = ctx.saved_tensors
        return *backward(dout, q, k, v, starts, targets, ctx.options), None, None, None
