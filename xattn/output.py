"""What a call returns when it is asked for the log-sum-exp too."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class AttentionOutput(NamedTuple):
    """out: (batch, seqlen_q, nheads, headdim_v), dtype of q. lse: (batch, nheads, seqlen_q) float32, natural log of
    the softmax's denominator, sink included; -inf for a query that sees no key and has no sink."""

    out: Tensor
    lse: Tensor


# What a call returns: out, or both with return_lse=True.
Output = Tensor | AttentionOutput
