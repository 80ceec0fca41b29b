"""Legal calls of `hstu_attention`, no two of one kind; every word that a capability block may have is used by one."""

from __future__ import annotations

from typing import Any

import torch
from sample import Sample
from torch import Tensor


def packed(
    lengths: tuple[int, ...] = (4, 0, 3),
    nheads: int = 4,
    headdim: int = 8,
    headdim_v: int = 8,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q, k, v and cu_seqlens, the same at every call, with one token of padding behind the last sequence."""
    generator = torch.Generator().manual_seed(0)
    cu_seqlens = torch.tensor((0, *lengths)).cumsum(0).int()
    widths = (headdim, headdim, headdim_v)
    total = sum(lengths) + 1
    q, k, v = (torch.randn(total, nheads, width, generator=generator).to(dtype) for width in widths)
    return q, k, v, cu_seqlens


def samples(length: int = 5) -> dict[str, Sample]:
    """length: of the longest sequence."""

    def made(named: dict[str, Any] | None = None, **sizes: Any) -> Sample:
        tensors = packed(**{"lengths": (length, 0, 3), **sizes})
        return Sample(tensors, {"norm": 16.0, "scale": 0.5, "max_seqlen": length, **(named or {})}, (0, 1, 2))

    return {
        "plain": made({"causal": False}),
        "float64": made({"causal": False}, dtype=torch.float64),
        "bound read": made({"max_seqlen": None, "scale": 0.0}),
        "causal": made(),
        "targets": made({"num_targets": torch.tensor([2, 0, 1], dtype=torch.int32)}),
        "a limit": made({"max_attn_len": 2}),
        "contextual": made({"contextual_seqlen": 2, "deterministic": True}),
        "narrow values": made(headdim_v=5),
        "empty": made({"max_seqlen": 0}, lengths=(0, 0, 0)),
    }
