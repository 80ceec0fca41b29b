"""Legal calls of `attention`, no two of one kind; every word that a capability block may have is used by one."""

from __future__ import annotations

from typing import Any

import torch
from sample import Sample
from support import qkv


def samples(length: int = 5) -> dict[str, Sample]:
    """length: of the queries."""

    def made(named: dict[str, Any] | None = None, **sizes: Any) -> Sample:
        tensors = qkv(**{"seqlen_q": length, "seqlen_k": length + 2, "nheads_k": 2, **sizes})
        return Sample(tensors, named or {}, differentiable=(0, 1, 2))

    generator = torch.Generator().manual_seed(1)
    scores = (2, 4, length, length + 2)
    return {
        "plain": made(),
        "float64": made(dtype=torch.float64),
        "square": made(seqlen_k=length, nheads_k=4),
        "causal": made({"causal": True}),
        "causal, top left": made({"causal": True, "align": "top_left"}),
        "causal, at a key": made({"causal": True, "align": 1}),
        "window": made({"window": (2, 1), "scale": 0.5}),
        "softcap": made({"softcap": 2.0, "deterministic": True}),
        "bits of each row": made({"deterministic": "batch", "causal": True}),
        "narrow values": _narrow(made()),
        "sinks and lse": made({"sinks": torch.randn(4, generator=generator), "return_lse": True}),
        "slopes": made({"alibi_slopes": torch.tensor([0.5, 0.25, 0.125, 0.0625])}),
        "bias": made({"bias": torch.randn(scores, generator=generator)}),
        "mask": made({"mask": torch.rand(scores, generator=generator) < 0.5}),
        "lengths": made({"seqlens_k": torch.tensor([2, length])}),
        "dropout of nothing": made({"dropout_p": 0.25, "mask": torch.zeros(1, dtype=torch.bool)}),
        "empty": made(batch=0),
    }


def _narrow(sample: Sample) -> Sample:
    q, k, v = sample.tensors
    return Sample((q, k, v[..., :5].contiguous()), sample.named, sample.differentiable)
