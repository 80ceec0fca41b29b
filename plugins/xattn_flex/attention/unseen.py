"""Keys that no query sees, in a call with masks or lengths. A tile multiplies them by 0, where a NaN would stay."""

from __future__ import annotations

import torch
from torch import Tensor

from xattn_flex.attention.mods import Tensors


def seen_keys(q: Tensor, k: Tensor, given: Tensors) -> Tensor:
    """Which keys some query sees: (batch or 1, seqlen_k, nheads_k or 1, 1)."""
    seqlen_q, nheads, seqlen_k, nheads_k = q.shape[1], q.shape[2], k.shape[1], k.shape[2]
    i = torch.arange(seqlen_q, device=q.device)[:, None]
    j = torch.arange(seqlen_k, device=q.device)
    visible = torch.ones(1, 1, 1, seqlen_k, dtype=torch.bool, device=q.device)
    if given.band is not None:
        row = i[None, None]
        if given.lengths is not None and given.offsets is not None:
            row = row + given.offsets[:, None, None, None]
        if given.mask is None and given.bias is None:
            # All queries together see what the first and the last do, and what is between.
            visible = (j >= row[..., :1, :] + given.band[0]) & (j <= row[..., -1:, :] + given.band[1])
        else:
            visible = (j >= row + given.band[0]) & (j <= row + given.band[1])
    if given.lengths is not None:
        visible = visible & (j < given.lengths[:, None, None, None])
    if given.mask is not None:
        visible = visible & given.mask
    if given.bias is not None:
        visible = visible & (given.bias.detach() != -torch.inf)
    seen = visible.any(2)
    if seen.shape[1] != 1:
        seen = seen.unflatten(1, (nheads_k, nheads // nheads_k)).any(2)
    return seen.transpose(1, 2).unsqueeze(3)
