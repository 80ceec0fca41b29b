"""`varlen_attention` as one attention of all tokens with all tokens, in which each sequence sees its own keys alone."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from xattn import AttentionOutput, Reason, VarlenBackwardRequest, VarlenKernel, VarlenRequest
from xattn.plugin import Plan
from xattn_reference import in_order
from xattn_reference.block import everything
from xattn_reference.packed import places
from xattn_reference.softmax import Scores, attend, wide, within

# What decides the scores of a call, forward or backward.
Described = VarlenRequest | VarlenBackwardRequest


class ReferenceVarlen(VarlenKernel):
    capabilities = (everything(VarlenRequest, fallback=True),)

    def limits(self, request: VarlenRequest) -> list[Reason]:
        return in_order.limits(request)

    def plan(self, request: VarlenRequest) -> Plan:
        return functools.partial(varlen_attention, request)

    def kernel_name(self, request: VarlenRequest) -> str:
        how = "sums in one order" if request.batch_invariant else "matmul"
        return f"PyTorch {how} and exp over all tokens"


def varlen_attention(
    request: VarlenRequest,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    *,
    max_seqlen_q: int,
    max_seqlen_k: int,
    sinks: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    align: int | Tensor | None = None,
) -> Tensor | AttentionOutput:
    """Shapes as in `xattn.varlen_attention`; the bounds are not needed. Computes in float32, or in float64 for float64
    tensors."""
    how, padding = scores(request, q, k, cu_seqlens_q, cu_seqlens_k, sinks, alibi_slopes, align)
    run = in_order.attend if how.in_order else attend
    out, lse = (each.squeeze(0) for each in run(q[None], k[None], v[None], how))
    # It is 0 there, and what comes in for it is not read.
    out = out.masked_fill(padding[:, None, None], 0.0)
    if not request.return_lse:
        return out
    # A token of no sequence has no sink.
    return AttentionOutput(out, lse.masked_fill(padding, -torch.inf))


def scores(
    request: Described,
    q: Tensor,
    k: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    sinks: Tensor | None,
    alibi_slopes: Tensor | None,
    align: int | Tensor | None,
) -> tuple[Scores, Tensor]:
    """Of all tokens with all tokens, a batch of 1; and which queries are of no sequence, (total_q,)."""
    sequence_q, i = places(cu_seqlens_q, q.shape[0])
    sequence_k, j = places(cu_seqlens_k, k.shape[0])
    off = _of_each(_offsets(request, cu_seqlens_q, cu_seqlens_k, align), sequence_q)
    distance = (i + off).unsqueeze(1) - j  # (total_q, total_k)
    padding = sequence_q == cu_seqlens_q.numel() - 1
    own = (sequence_q.unsqueeze(1) == sequence_k) & ~padding.unsqueeze(1)
    added = []
    if alibi_slopes is not None:
        slopes = alibi_slopes.to(wide(q))
        if slopes.dim() == 2:
            slopes = _of_each(slopes, sequence_q).t().unsqueeze(-1)  # (nheads, total_q, 1)
        added.append(-slopes.view(1, request.nheads, -1, 1) * distance.abs())
    visible = (within(distance, request.band) & own)[None, None]
    ordered = request.batch_invariant
    return Scores(request.softmax_scale, request.softcap, visible, added, sinks, ordered), padding


def _offsets(
    request: Described,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    align: int | Tensor | None,
) -> Tensor:
    """`off` of each sequence: (batch,)."""
    if align is not None:
        return torch.zeros_like(cu_seqlens_q[1:], dtype=torch.int64) + align
    if request.align == "top_left":
        return torch.zeros_like(cu_seqlens_q[1:], dtype=torch.int64)
    return (cu_seqlens_k.diff() - cu_seqlens_q.diff()).long()


def _of_each(values: Tensor, sequence: Tensor) -> Tensor:
    """What the sequence of each token has, and 0 for padding: (total, ...)."""
    return torch.cat((values, values.new_zeros(1, *values.shape[1:])))[sequence]
