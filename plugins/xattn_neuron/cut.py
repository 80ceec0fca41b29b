"""What is left of a call without queries that see no key and keys that no query sees, from sizes alone.

The kernels know causal attention whose diagonal starts at the first query and key, and windows to its left. Cutting
brings most alignments to that; and the keys cut away may hold NaN, which a kernel would multiply by 0.
"""

from __future__ import annotations

from dataclasses import dataclass

from xattn import AttentionRequest, Reason


@dataclass(frozen=True)
class Cut:
    """Queries first_q:end_q and keys first_k:end_k, each of which sees a key, or is seen.

    left, right: the window of these, without sides that hide nothing. right is 0 for causal.
    offset:      the key that the first of these queries is aligned with.
    """

    first_q: int
    end_q: int
    first_k: int
    end_k: int
    left: int | None
    right: int | None
    offset: int

    @property
    def seqlen_q(self) -> int:
        return self.end_q - self.first_q

    @property
    def seqlen_k(self) -> int:
        return self.end_k - self.first_k

    @property
    def causal(self) -> bool:
        return self.right == 0

    @property
    def square(self) -> bool:
        """Keys added behind the last stay hidden from every query, as the diagonal ends where they begin."""
        return self.causal and self.offset == 0 and self.seqlen_q <= self.seqlen_k


def cut(request: AttentionRequest) -> Cut:
    """For requests without seqlens_k, mask and empty sizes: then some query always sees a key."""
    (left, right), off = request.band, request.offset
    seqlen_q, seqlen_k = request.seqlen_q, request.seqlen_k
    first_q = 0 if right is None else max(0, -(off + right))
    end_q = seqlen_q if left is None else min(seqlen_q, seqlen_k - off + left)
    first_k = 0 if left is None else max(0, first_q + off - left)
    end_k = seqlen_k if right is None else min(seqlen_k, end_q + off + right)
    offset = first_q + off - first_k
    if left is not None and end_q - first_q - 1 + offset <= left:
        left = None
    if right is not None and offset + right >= end_k - first_k - 1:
        right = None
    return Cut(first_q, end_q, first_k, end_k, left, right, offset)


def window_reasons(request: AttentionRequest, kept: Cut) -> list[Reason]:
    """Windows that no kernel of AWS's has."""
    if kept.right not in (None, 0):
        hint = "AWS's kernels have causal windows alone, (left, 0)."
        return [Reason("window", request.window, "nothing to the right", hint)]
    if kept.left is not None and kept.right is None:
        hint = "AWS's kernels have windows beside a causal mask alone: say causal=True, if that is meant."
        return [Reason("window", request.window, "causal", hint)]
    return []
