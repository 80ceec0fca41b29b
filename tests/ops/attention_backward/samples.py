"""Legal calls of `attention_backward`, no two of one kind; every word that a capability block may have is used."""

from __future__ import annotations

from typing import Any

import torch
from sample import Sample
from support import qkv
from torch import Tensor


def with_results(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    """dout, q, k, v, out, lse: the results of more keys than there are here."""
    generator = torch.Generator().manual_seed(2)
    shape = (*q.shape[:3], v.shape[3])
    dout, out = (torch.randn(shape, generator=generator).to(q.dtype) for _ in range(2))
    lse = 3.0 + torch.rand(q.shape[0], q.shape[2], q.shape[1], generator=generator)
    return dout, q, k, v, out, lse


def samples(length: int = 5) -> dict[str, Sample]:
    """length: of the queries."""

    def made(named: dict[str, Any] | None = None, headdim_v: int = 8, **sizes: Any) -> Sample:
        q, k, v = qkv(**{"seqlen_q": length, "seqlen_k": length + 2, "nheads_k": 2, **sizes})
        return Sample(
            with_results(q, k, v[..., :headdim_v].contiguous()), named or {}, differentiable=(0, 1, 2, 3, 4, 5)
        )

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
        "narrow values": made(headdim_v=5),
        "slopes": made({"alibi_slopes": torch.tensor([0.5, 0.25, 0.125, 0.0625])}),
        "bias": made({"bias": torch.randn(scores, generator=generator)}),
        "mask": made({"mask": torch.rand(scores, generator=generator) < 0.5}),
        "lengths": made({"seqlens_k": torch.tensor([2, length])}),
        "empty": made(batch=0),
    }
