"""Stored bytes as numbers by tables, which on a CPU takes a fraction of torch's casts of FP8 and its shifts of nibbles.

One look-up gives two numbers as one integer: torch's index_select moves single elements several times as fast as rows.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from xattn.plugin.quantised import INT4, dequantised


def numbers(stored: Tensor, of: torch.dtype) -> Tensor:
    """stored: (..., columns) uint8, contiguous, the bytes of a cache of dtype `of`. (..., headdim) float32."""
    columns, index = stored.shape[-1], stored.flatten()
    pairs = of != INT4 and len(index) % 2 == 0  # two bytes are two numbers of FP8; one is, of int4
    index = (index.view(torch.uint16) if pairs else index).int()
    found = _table(of, pairs, str(stored.device)).index_select(0, index)
    return found.view(torch.float32).view(*stored.shape[:-1], 2 * columns if of == INT4 else columns)


@functools.cache
def _table(of: torch.dtype, pairs: bool, device: str) -> Tensor:
    """What each byte, or pair of bytes, stands for, as one integer: (256,) or (65536,)."""
    every = torch.arange(65536 if pairs else 256, dtype=torch.int32, device=device)
    stored = every.to(torch.uint16).view(torch.uint8).view(-1, 2) if pairs else every.to(torch.uint8).unsqueeze(1)
    found = dequantised(stored.view(of), torch.ones((), device=device))
    return found.view(torch.int64 if found.shape[1] == 2 else torch.int32).flatten()
