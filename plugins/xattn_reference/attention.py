"""`attention` as the contract words it, one line of the contract after the other."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from xattn import AttentionBackwardRequest, AttentionKernel, AttentionOutput, AttentionRequest, Reason
from xattn.plugin import Plan
from xattn_reference import in_order
from xattn_reference.block import everything
from xattn_reference.softmax import Scores, attend, wide, within

# What decides the scores of a call, forward or backward.
Described = AttentionRequest | AttentionBackwardRequest


class ReferenceAttention(AttentionKernel):
    capabilities = (everything(AttentionRequest, fallback=True),)

    def limits(self, request: AttentionRequest) -> list[Reason]:
        return in_order.limits(request)

    def plan(self, request: AttentionRequest) -> Plan:
        return functools.partial(attention, request)

    def kernel_name(self, request: AttentionRequest) -> str:
        how = "sums in one order" if request.batch_invariant else "matmul"
        return f"PyTorch {how} and exp over the whole score matrix"


def attention(
    request: AttentionRequest,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    sinks: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    seqlens_k: Tensor | None = None,
    align: int | None = None,
) -> Tensor | AttentionOutput:
    """Shapes as in `xattn.attention`. Computes in float32, or in float64 for float64 tensors.

    align: `off` itself, where the request's align is "offset".
    """
    how = scores(request, q, sinks, alibi_slopes, bias, mask, seqlens_k, align)
    out, lse = in_order.attend(q, k, v, how) if how.in_order else attend(q, k, v, how, request.dropout_p)
    return AttentionOutput(out, lse) if request.return_lse else out


def scores(
    request: Described,
    q: Tensor,
    sinks: Tensor | None,
    alibi_slopes: Tensor | None,
    bias: Tensor | None,
    mask: Tensor | None,
    seqlens_k: Tensor | None,
    align: int | None,
) -> Scores:
    """Optional tensors as in `xattn.attention`."""
    distance = _distance(request, seqlens_k, align, q.device)  # (batch or 1, 1, seqlen_q, seqlen_k)
    visible = _visible(request, distance, mask, bias, seqlens_k)  # broadcastable to the scores
    added = [] if bias is None else [bias]
    if alibi_slopes is not None:
        added.append(-alibi_slopes.to(wide(q)).view(-1, request.nheads, 1, 1) * distance.abs())
    return Scores(request.softmax_scale, request.softcap, visible, added, sinks, request.batch_invariant)


def _distance(
    request: Described,
    seqlens_k: Tensor | None,
    align: int | None,
    device: torch.device,
) -> Tensor:
    """i + off - j: (batch or 1, 1, seqlen_q, seqlen_k)."""
    i = torch.arange(request.seqlen_q, device=device).view(1, 1, -1, 1)
    j = torch.arange(request.seqlen_k, device=device).view(1, 1, 1, -1)
    off: Tensor | int | None = request.offset if align is None else align
    if seqlens_k is not None and request.align == "bottom_right":
        off = seqlens_k.view(-1, 1, 1, 1) - request.seqlen_q
    assert off is not None
    return i + off - j


def _visible(
    request: Described,
    distance: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    seqlens_k: Tensor | None,
) -> Tensor:
    """Which keys each query sees: bool, broadcastable to (batch, nheads, seqlen_q, seqlen_k)."""
    visible = within(distance, request.band)
    if seqlens_k is not None:
        j = torch.arange(request.seqlen_k, device=distance.device)
        visible = visible & (j < seqlens_k.view(-1, 1, 1, 1))
    if mask is not None:
        visible = visible & mask
    if bias is not None:
        visible = visible & (bias != -torch.inf)
    return visible
