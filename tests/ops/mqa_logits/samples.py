"""Legal calls of `mqa_logits`, no two of one kind; every word that a capability block may have is used by one."""

from __future__ import annotations

import torch
from sample import Sample
from torch import Tensor

FP8 = torch.float8_e4m3fn


def ranges(total_q: int, total_k: int) -> tuple[Tensor, Tensor]:
    """starts and ends: causal ones, but for one row that has none, and one that goes past the keys and begins before
    them."""
    ends = torch.arange(1, total_q + 1) + max(total_k - total_q, 0)
    starts = torch.arange(total_q) // 2
    if total_q > 2:
        starts[1], ends[1] = 3, 3
        starts[2], ends[2] = -4, total_k + 9
    return starts.int(), ends.int()


def indexed(
    total_q: int = 5, total_k: int = 9, nheads: int = 4, headdim: int = 8, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, ...]:
    """q, k, weights, starts and ends, the same at every call."""
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(total_q, nheads, headdim, generator=generator).to(dtype)
    k = torch.randn(total_k, headdim, generator=generator).to(dtype)
    return q, k, torch.randn(total_q, nheads, generator=generator), *ranges(total_q, total_k)


def samples(length: int = 5) -> dict[str, Sample]:
    """length: how many queries."""

    def made(total_k: int = length + 6, dtype: torch.dtype = torch.float32, scaled: bool = False) -> Sample:
        scale = {"k_scale": torch.linspace(0.5, 2, total_k)} if scaled else {}
        return Sample(indexed(length, total_k, dtype=dtype), scale, caches=(0, 1) if scaled else ())

    return {
        "plain": made(),
        "float64": made(dtype=torch.float64),
        "bfloat16": made(dtype=torch.bfloat16),
        "scaled": made(dtype=FP8, scaled=True),
        "no keys": made(0),
    }
