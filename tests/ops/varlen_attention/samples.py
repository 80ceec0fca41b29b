"""Legal calls of `varlen_attention`, no two of one kind; every word that a capability block may have is used by one."""

from __future__ import annotations

from typing import Any

import torch
from sample import Sample
from torch import Tensor


def packed(
    lengths_q: tuple[int, ...] = (3, 0, 2),
    lengths_k: tuple[int, ...] = (4, 2, 2),
    nheads: int = 4,
    nheads_k: int = 2,
    headdim: int = 8,
    headdim_v: int = 8,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """q, k, v and both cu_seqlens, the same at every call, with one token of padding behind the last sequence."""
    generator = torch.Generator().manual_seed(0)
    cu_q, cu_k = (torch.tensor((0, *lengths)).cumsum(0).int() for lengths in (lengths_q, lengths_k))
    shapes = (
        (sum(lengths_q) + 1, nheads, headdim),
        (sum(lengths_k) + 1, nheads_k, headdim),
        (sum(lengths_k) + 1, nheads_k, headdim_v),
    )
    q, k, v = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    return q, k, v, cu_q, cu_k


def samples(length: int = 5) -> dict[str, Sample]:
    """length: of the longest sequence of queries.

    At 5 no two sizes that may change are equal, nor equal to one that stays: torch.compile would take them for one.
    """

    def made(named: dict[str, Any] | None = None, **sizes: Any) -> Sample:
        tensors = packed(**{"lengths_q": (length, 0, 3), "lengths_k": (length + 2, 2, 1), **sizes})
        bounds = {"max_seqlen_q": length, "max_seqlen_k": length + 2}
        return Sample(tensors, {**bounds, **(named or {})}, differentiable=(0, 1, 2))

    q, k, v, cu_q, _ = packed((length, 0, 2), (length, 0, 2))
    bounds = {"max_seqlen_q": length, "max_seqlen_k": length}
    slopes = torch.tensor([0.5, 0.25, 0.125, 0.0625])
    return {
        "plain": made(),
        "float64": made(dtype=torch.float64),
        "one head a key": made(nheads_k=4),
        "bounds read": made({"max_seqlen_q": None, "max_seqlen_k": None, "scale": 0.5}),
        "keys at the queries": Sample((q, k, v, cu_q), {"causal": True, **bounds}, (0, 1, 2)),
        "causal": made({"causal": True}),
        "causal, top left": made({"causal": True, "align": "top_left"}),
        "causal, at a key": made({"causal": True, "align": 1}),
        "causal, at keys": made({"causal": True, "align": torch.tensor([1, 0, -1], dtype=torch.int32)}),
        "window": made({"window": (2, 1)}),
        "softcap": made({"softcap": 2.0, "deterministic": True}),
        "bits of each sequence": made({"deterministic": "batch"}),
        "narrow values": made(headdim_v=5),
        "sinks and lse": made({"sinks": torch.linspace(-1, 1, 4), "return_lse": True}),
        "slopes": made({"alibi_slopes": slopes}),
        "slopes of each sequence": made({"alibi_slopes": slopes.repeat(3, 1)}),
        "empty": made({"max_seqlen_q": 0}, lengths_q=(0, 0, 0)),
    }
