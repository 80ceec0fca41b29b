"""What a call returns when it is asked for the log-sum-exp too."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class AttentionOutput(NamedTuple):
    """out: as the op returns it without lse.
    lse: float32 (batch, nheads, seqlen_q), of packed tensors (nheads, total_q), the natural log of the softmax's
        denominator, sink included; -inf for a query that sees no key, without sink.
    """

    out: Tensor
    lse: Tensor


# What a call returns: out, or both with return_lse=True.
Output = Tensor | AttentionOutput
