"""Masks and biases with 4 dimensions, and the keys that they hide from every query."""

from __future__ import annotations

from typing import overload

import torch
from torch import Tensor


@overload
def with_four(tensor: Tensor) -> Tensor: ...
@overload
def with_four(tensor: None) -> None: ...
@overload
def with_four(tensor: Tensor | None) -> Tensor | None: ...
def with_four(tensor: Tensor | None) -> Tensor | None:
    """The tensor with 4 dimensions; with 3, torch's attention leaves its fused path."""
    return None if tensor is None else tensor[(None,) * (4 - tensor.dim())]


def seen_keys(mask: Tensor | None, bias: Tensor | None, q: Tensor, k: Tensor, causal: bool) -> Tensor:
    """Which keys some query sees, (batch or 1, seqlen_k, nheads_k or 1, 1). The others may hold NaN, and 0 * NaN would
    reach the output.

    mask, bias: one of them at least, with 4 dimensions, each whole or 1. causal: from the top left as well.
    """
    visible = mask
    if bias is not None:
        unhidden = bias.detach() != -torch.inf
        visible = unhidden if visible is None else visible & unhidden
    assert visible is not None
    seqlen_q, nheads, seqlen_k, nheads_k = q.shape[1], q.shape[2], k.shape[1], k.shape[2]
    if causal and visible.shape[2] != 1:
        i = torch.arange(seqlen_q, device=q.device).unsqueeze(1)
        visible = visible & (i >= torch.arange(seqlen_k, device=q.device))
    seen = visible.any(2).expand(-1, -1, seqlen_k)
    if nheads_k != nheads and seen.shape[1] != 1:
        seen = seen.unflatten(1, (nheads_k, nheads // nheads_k)).any(2)
    return seen.transpose(1, 2).unsqueeze(3)
