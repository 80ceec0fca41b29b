"""Attention in float64, from the definition, with heads in front: (batch, nheads, seqlen, headdim)."""

from __future__ import annotations

import torch
from torch import Tensor


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    *,
    causal: bool = False,
    window: int | None = None,
    sink: Tensor | None = None,
    prior: int = 0,
) -> tuple[Tensor, Tensor]:
    """out and lse. Query i is at key prior + i; window: keys that it sees, itself the last. sink: (batch, nheads)."""
    group = q.shape[1] // k.shape[1]
    k, v = (each.repeat_interleave(group, 1) for each in (k, v))
    scores = q @ k.mT * scale
    behind = torch.arange(q.shape[2])[:, None] + prior - torch.arange(k.shape[2])
    hidden = torch.zeros_like(behind, dtype=torch.bool)
    if causal or window:
        hidden |= behind < 0
    if window:
        hidden |= behind >= window
    scores = scores.masked_fill(hidden, -torch.inf)
    terms = [scores] if sink is None else [scores, sink[:, :, None, None].expand(*scores.shape[:3], 1)]
    lse = torch.cat(terms, -1).logsumexp(-1)
    return torch.exp(scores - lse[..., None]) @ v, lse


def doubles(*tensors: Tensor) -> list[Tensor]:
    return [each.detach().double().requires_grad_() for each in tensors]


def apart(got: Tensor, wanted: Tensor) -> float:
    """The largest error; inf where `got` is not finite."""
    error = (got.double() - wanted.detach()).abs()
    return float(torch.where(got.isfinite(), error, torch.inf).max())
