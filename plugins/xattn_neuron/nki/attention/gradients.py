"""attention_cte with attention_bwd behind it. The backward has a layout of its own, (batch, heads, headdim, seqlen)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.compiler import is_compiling

from xattn import AttentionRequest
from xattn.plugin import Plan, derivatives
from xattn.plugin.geometry import Geometry
from xattn_neuron import layout, torch_ops
from xattn_neuron.installation import Installation
from xattn_neuron.nki.attention import launches
from xattn_neuron.nki.attention.limits import keys_of_backward


@dataclass(frozen=True)
class Options:
    """length_q, length_k: as padded for the backward. scaled: q meets the forward multiplied by the scale."""

    scale: float
    scaled: bool
    causal: bool
    window: int | None
    length_q: int
    length_k: int
    lnc: int
    compiled: bool


def plan(request: AttentionRequest, installed: Installation, scaled: bool) -> Plan:
    whole = Geometry.of(request)
    kept = whole.trimmed()
    first_q, end_q, first_k, end_k = whole.first_q, whole.end_q, whole.first_k, whole.end_k
    # bwd-lengths. In a causal call seqlen_q is seqlen_k here, and the mask hides the keys that padding adds.
    length_k = keys_of_backward(kept)
    options = Options(
        scale=request.softmax_scale,
        scaled=scaled,
        causal=kept.causal,
        window=None if kept.left is None else kept.left + 1,
        length_q=length_k if kept.causal else layout.up(kept.seqlen_q, 128),
        length_k=length_k,
        lnc=installed.lnc,
        compiled=is_compiling(),
    )
    behind = request.seqlen_q - end_q
    cuts_q, cuts_k = kept.seqlen_q != request.seqlen_q, kept.seqlen_k != request.seqlen_k

    def run(q: Tensor, k: Tensor, v: Tensor, *, sinks: Tensor | None = None) -> Tensor:
        if cuts_q:
            q = q[:, first_q:end_q]
        if cuts_k:
            k, v = k[:, first_k:end_k], v[:, first_k:end_k]
        out: Tensor = Attend.apply(q, k, v, sinks, options)  # type: ignore[no-untyped-call]
        return F.pad(out, (0, 0, 0, 0, first_q, behind)) if cuts_q else out

    return run


class Attend(Function):
    """(q, k, v, sinks, options) -> out, differentiable in q, k, v and sinks."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, options: Options) -> Tensor:
        batch, seqlen_q, nheads, _ = q.shape
        call = torch_ops.operator(launches.attention_cte) if options.compiled else launches.attention_cte
        each = None if sinks is None else layout.for_each_row(sinks, batch)
        length_q = options.length_q
        rows = layout.scaled(q, length_q, options.scale) if options.scaled else layout.padded(q, length_q)
        heads, neg_max, sum_recip = call(
            rows.flatten(0, 1),
            layout.heads_first(k),
            layout.heads_first(v),
            None, None, None, None if each is None else each.view(batch * nheads, 1),
            1.0 if options.scaled else options.scale, options.causal, options.window, True, options.lnc,
        )  # fmt: skip
        out = layout.heads_last(heads.unflatten(0, (batch, nheads)), seqlen_q)
        lse = -(neg_max + sum_recip.log()).unflatten(0, (batch, nheads))
        # Padding adds rows that see no key. Their gradients are cut off, but a NaN in their lse would reach real keys.
        lse = lse.masked_fill(lse < -1e38, 0.0)
        ctx.save_for_backward(q, k, v, out, lse, each)
        ctx.options, ctx.dtype = options, None if sinks is None else sinks.dtype
        return out

    @staticmethod
    @derivatives.first_alone("nki")
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse, each = ctx.saved_tensors
        options: Options = ctx.options
        call = torch_ops.operator(launches.attention_bwd) if options.compiled else launches.attention_bwd
        length_q, length_k = options.length_q, options.length_k
        dq, dk, dv, dsinks = call(
            layout.dims_first(q, length_q), layout.dims_first(k, length_k), layout.dims_first(v, length_k),
            layout.dims_first(out, length_q), layout.dims_first(dout, length_q), lse, each,
            options.scale, options.causal, options.window, options.lnc,
        )  # fmt: skip
        grads = (layout.from_dims_first(dx, x.shape[1]) for dx, x in ((dq, q), (dk, k), (dv, v)))
        return *grads, None if each is None else dsinks.sum(0).to(ctx.dtype), None
