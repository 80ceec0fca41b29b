"""`attention` as the contract words it, one line of the contract after the other."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from xattn import AttentionKernel, AttentionOutput, AttentionRequest
from xattn.plugin import Plan
from xattn_reference.block import everything


class ReferenceAttention(AttentionKernel):
    capabilities = (everything(AttentionRequest, fallback=True),)

    def plan(self, request: AttentionRequest) -> Plan:
        return functools.partial(attention, request)

    def kernel_name(self, request: AttentionRequest) -> str:
        return "PyTorch matmul and exp over the whole score matrix"


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
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    batch, seqlen_q, nheads, _ = q.shape
    seqlen_k, nheads_k, headdim_v = v.shape[1:]
    group = nheads // nheads_k

    distance = _distance(request, seqlens_k, align, q.device)  # (batch or 1, 1, seqlen_q, seqlen_k)
    visible = _visible(request, distance, mask, bias, seqlens_k)  # broadcastable to the scores

    # A key that no query sees may hold NaN, and 0 * NaN is NaN: take it out before any arithmetic.
    seen = visible.any(2).expand(batch, nheads, seqlen_k).unflatten(1, (nheads_k, group)).any(2)
    seen = seen.transpose(1, 2).unsqueeze(3)  # (batch, seqlen_k, nheads_k, 1)
    keys = k.to(wide).masked_fill(~seen, 0.0)
    values = v.to(wide).masked_fill(~seen, 0.0)

    grouped = q.to(wide).unflatten(2, (nheads_k, group))
    scores = torch.einsum("bikgd,bjkd->bkgij", grouped, keys).flatten(1, 2) * request.softmax_scale
    if request.softcap is not None:
        scores = request.softcap * torch.tanh(scores / request.softcap)
    if bias is not None:
        scores = scores + bias.to(wide)
    if alibi_slopes is not None:
        scores = scores - alibi_slopes.to(wide).view(-1, nheads, 1, 1) * distance.abs()
    scores = scores.masked_fill(~visible, -torch.inf)

    # Softmax by hand: the sink is a term without a value, and a row without keys is 0 by its masks, not by its logits.
    dead = ~visible.any(-1, keepdim=True)
    top = scores.detach().amax(-1, keepdim=True) if seqlen_k > 0 else scores.new_zeros(*scores.shape[:3], 1)
    top = top.masked_fill(dead, -torch.inf)
    if sinks is not None:
        sink = sinks.to(wide).view(1, nheads, 1, 1)
        top = torch.maximum(top, sink.detach())
    top = top.masked_fill(top == -torch.inf, 0.0)
    weights = torch.exp(scores - top)
    total = weights.sum(-1, keepdim=True)
    if sinks is not None:
        total = total + torch.exp(sink - top)
    empty = dead & (total == 0)  # neither a key nor a sink
    total = total.masked_fill(empty, 1.0)
    probabilities = weights / total
    if request.dropout_p is not None:
        probabilities = F.dropout(probabilities, request.dropout_p)
    out = torch.einsum("bkgij,bjkd->bikgd", probabilities.unflatten(1, (nheads_k, group)), values)
    out = out.reshape(batch, seqlen_q, nheads, headdim_v).to(q.dtype).contiguous()
    if not request.return_lse:
        return out
    lse = (torch.log(total) + top).masked_fill(empty, -torch.inf)
    return AttentionOutput(out, lse.squeeze(-1).float())


def _distance(request: AttentionRequest, seqlens_k: Tensor | None, align: int | None, device: torch.device) -> Tensor:
    """i + off - j: (batch or 1, 1, seqlen_q, seqlen_k)."""
    i = torch.arange(request.seqlen_q, device=device).view(1, 1, -1, 1)
    j = torch.arange(request.seqlen_k, device=device).view(1, 1, 1, -1)
    off: Tensor | int | None = request.offset if align is None else align
    if seqlens_k is not None and request.align == "bottom_right":
        off = seqlens_k.view(-1, 1, 1, 1) - request.seqlen_q
    assert off is not None
    return i + off - j


def _visible(
    request: AttentionRequest, distance: Tensor, mask: Tensor | None, bias: Tensor | None, seqlens_k: Tensor | None
) -> Tensor:
    """Which keys each query sees: bool, broadcastable to (batch, nheads, seqlen_q, seqlen_k)."""
    visible = torch.ones_like(distance, dtype=torch.bool)
    left, right = request.band
    if left is not None:
        visible = visible & (distance <= left)
    if right is not None:
        visible = visible & (distance >= -right)
    if seqlens_k is not None:
        j = torch.arange(request.seqlen_k, device=distance.device)
        visible = visible & (j < seqlens_k.view(-1, 1, 1, 1))
    if mask is not None:
        visible = visible & mask
    if bias is not None:
        visible = visible & (bias != -torch.inf)
    return visible
