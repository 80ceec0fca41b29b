"""Legal calls of `apply_rotary`, no two of one kind; every word that a capability block may have is used by one."""

from __future__ import annotations

from typing import Any

import torch
from ops.apply_rotary.rotary_calls import tensors
from sample import Sample


def samples(length: int = 5) -> dict[str, Sample]:
    """length: of the sequence."""

    def made(named: dict[str, Any] | None = None, **sizes: Any) -> Sample:
        return Sample(tensors(**{"seqlen": length, **sizes}), named or {}, differentiable=(0, 1))

    q, _, cos, sin = tensors(seqlen=length)
    return {
        "plain": made(),
        "float64": made(dtype=torch.float64),
        "table of the same dtype": made(dtype=torch.float16, table=torch.float16),
        "interleaved": made({"interleaved": True}),
        "partial": made(rotary_dim=8),
        "positions of each row": made(batched=True),
        "q alone": Sample((q, None, cos, sin), differentiable=(0,)),
        "empty": made(batch=0),
    }
