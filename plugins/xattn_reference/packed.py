"""Packed sequences, as several ops have them."""

from __future__ import annotations

import torch
from torch import Tensor


def places(cu_seqlens: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """The sequence of each token, the number of sequences for padding, and the token's place in it."""
    token = torch.arange(total, device=cu_seqlens.device)
    sequence = torch.bucketize(token, cu_seqlens[1:].long(), right=True)
    return sequence, token - cu_seqlens.long()[sequence]
