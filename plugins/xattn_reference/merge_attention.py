"""`merge_attention` in plain PyTorch, on any device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from xattn import AttentionOutput, MergeKernel, MergeRequest
from xattn.plugin import Plan
from xattn_reference.block import everything


class ReferenceMerge(MergeKernel):
    capabilities = (everything(MergeRequest),)

    def plan(self, request: MergeRequest) -> Plan:
        return merge

    def kernel_name(self, request: MergeRequest) -> str:
        return "PyTorch exp and sums"


def merge(outs: Sequence[Tensor], lses: Sequence[Tensor]) -> AttentionOutput:
    """Shapes as in `xattn.merge_attention`. Computes in float32, or in float64 for float64 tensors."""
    wide = torch.float64 if outs[0].dtype == torch.float64 else torch.float32
    lse = torch.stack([each.to(wide) for each in lses])  # (parts, ..., nheads, rows)
    top = lse.detach().amax(0)
    top = top.masked_fill(top == -torch.inf, 0.0)
    weights = torch.exp(lse - top)  # of +inf and NaN it is NaN
    total = weights.sum(0)
    dead = total == 0
    shares = (weights / total.masked_fill(dead, 1.0)).transpose(-1, -2).unsqueeze(-1)  # as outs, headdim 1
    # What a query saw no key of is not read: 0 * NaN is NaN.
    unread = (lse == -torch.inf).transpose(-1, -2).unsqueeze(-1)
    merged = sum(
        out.to(wide).masked_fill(hidden, 0.0) * share for out, hidden, share in zip(outs, unread, shares, strict=True)
    )
    assert isinstance(merged, Tensor)
    whole = (torch.log(total.masked_fill(dead, 1.0)) + top).masked_fill(dead, -torch.inf)
    return AttentionOutput(merged.to(outs[0].dtype).contiguous(), whole.float())
