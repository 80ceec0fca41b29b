"""`hstu_attention` in plain PyTorch: the sequences as the rows of a batch, padded to the bound."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from xattn import HstuKernel, HstuRequest
from xattn.plugin import Plan
from xattn_reference.block import everything
from xattn_reference.packed import places
from xattn_reference.softmax import wide


class ReferenceHstu(HstuKernel):
    capabilities = (everything(HstuRequest, fallback=True, checked="run on CPU"),)

    def plan(self, request: HstuRequest) -> Plan:
        return functools.partial(hstu_attention, request)

    def kernel_name(self, request: HstuRequest) -> str:
        return "PyTorch matmul and SiLU over padded sequences"


def hstu_attention(
    request: HstuRequest,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    *,
    max_seqlen: int,
    num_targets: Tensor | None = None,
) -> Tensor:
    """Shapes as in `xattn.hstu_attention`. Computes in float32, or in float64 for float64 tensors."""
    total, batch = q.shape[0], cu_seqlens.shape[0] - 1
    starts, lengths = cu_seqlens[:-1].long().unsqueeze(1), cu_seqlens.diff().long().unsqueeze(1)
    place = torch.arange(max_seqlen, device=q.device)
    there = place < lengths  # (batch, max_seqlen)
    row = torch.where(there, starts + place, total)
    # (batch, nheads, max_seqlen, ...), 0 where a sequence has no token.
    queries, keys, values = (_rows(x.to(wide(q)), row).transpose(1, 2) for x in (q, k, v))
    weights = F.silu(request.scale * (queries @ keys.mT)) / request.norm
    seen = visible(request, place, lengths, num_targets) & there.unsqueeze(2) & there.unsqueeze(1)
    out = weights.masked_fill(~seen.unsqueeze(1), 0.0) @ values
    # A token of no sequence takes the row past the last, which is 0.
    sequence, at = places(cu_seqlens, total)
    found = torch.where(sequence == batch, batch * max_seqlen, sequence * max_seqlen + at)
    return _rows(out.transpose(1, 2).flatten(0, 1), found).to(q.dtype).contiguous()


def visible(request: HstuRequest, place: Tensor, lengths: Tensor, num_targets: Tensor | None) -> Tensor:
    """Which tokens each token of a sequence sees: (batch, max_seqlen, max_seqlen). place: (max_seqlen,). lengths:
    (batch, 1)."""
    contextual = request.contextual_seqlen or 0
    before = max(contextual - 1, 0)
    last = lengths - before if num_targets is None else lengths - before - num_targets.long().unsqueeze(1)
    # Contextual tokens are all where the first one of the history is, targets all where its end is.
    at = torch.minimum((place - before).clamp_min(0), last)
    distance = at.unsqueeze(2) - at.unsqueeze(1)
    if not request.causal:
        distance = distance.abs()
    seen = (place.unsqueeze(1) == place) | (distance > 0)
    if request.max_attn_len is not None:
        seen = seen & (distance <= request.max_attn_len)
    if contextual:
        seen = seen | ((at == 0).unsqueeze(2) & (at < last).unsqueeze(1))
    return seen


def _rows(x: Tensor, rows: Tensor) -> Tensor:
    """Rows of x, of which there is one more, that is 0."""
    return torch.cat((x, x.new_zeros(1, *x.shape[1:])))[rows]
