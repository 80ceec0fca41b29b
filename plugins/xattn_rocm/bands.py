"""What a band hides, from sizes alone: keys that no query sees, and queries that see no key.

Both backends serve the bottom-right alignment only where it matters: query i is aligned with key
i + seqlen_k - seqlen_q, and sees from `left` keys before that to `right` keys behind it.
"""

from __future__ import annotations

from torch import Tensor

from xattn import AttentionRequest


def band(request: AttentionRequest) -> tuple[int | None, int | None]:
    """(left, right) of the request without the sides that hide nothing. With seqlens_k they hide nothing in a shorter
    row either."""
    left, right = request.band
    if left is not None and left >= request.seqlen_k - 1:
        left = None
    if right is not None and right >= request.seqlen_q - 1:
        right = None
    return left, right


def first_seen(request: AttentionRequest) -> int:
    """The keys before this one are behind every query's window. Kernels load tiles that hold some of them, and
    0 * NaN would reach the output: slice them off."""
    left, _ = band(request)
    return 0 if left is None else max(0, request.seqlen_k - request.seqlen_q - left)


def dead_rows(request: AttentionRequest) -> int:
    """The number of queries, from the first, that see no key. Without seqlens_k."""
    _, right = band(request)
    return 0 if right is None else min(request.seqlen_q, max(0, request.seqlen_q - request.seqlen_k - right))


def bury(out: Tensor, lse: Tensor | None, dead: int, sinks: Tensor | None) -> None:
    """Write what the contract says of the first `dead` queries: out 0, lse -inf, or the sink.

    out: (batch, seqlen_q, nheads, headdim_v). lse: (batch, nheads, seqlen_q). sinks: (nheads,).
    """
    out[:, :dead] = 0
    if lse is not None:
        lse[:, :, :dead] = -float("inf") if sinks is None else sinks[:, None]
