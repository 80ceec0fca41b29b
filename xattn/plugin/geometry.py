"""Which keys the queries of a call see by causal, window and alignment, worked out from sizes alone: queries that see
no key, keys that no query sees, sides that hide nothing, and the smallest problem with the same answer.

In the contract's words: query i sees key j when i + off - left <= j <= i + off + right. `off` is the key that query 0
is aligned with, seqlen_k - seqlen_q for "bottom_right" and 0 for "top_left". A side of None is open. (left, right) is
the band of the call: causal=True makes its right side 0, whatever the window says.

A kernel that has few bands serves more calls when it gets the smallest equal problem. One that has none, but causal
from the first query and key to the last of both:

    whole = Geometry.of(request)
    kept = whole.trimmed()
    if kept.full or (kept.left is None and kept.square):

        def run(q, k, v):
            q = q[:, whole.first_q : whole.end_q]
            k, v = k[:, whole.first_k : whole.end_k], v[:, whole.first_k : whole.end_k]
            out = kernel(q, k, v, causal=kept.causal)
            # The queries that were cut off see no key: rows of 0.
            return F.pad(out, (0, 0, 0, 0, whole.first_q, whole.seqlen_q - whole.end_q))

Keys that no query sees may hold NaN. A kernel that loads them multiplies NaN by a weight of 0, and the NaN reaches the
output: so cut them off, as above, whatever the kernel masks.

Sizes, sides and offsets may be symbolic under torch.compile. Here they are added and compared, never hashed and never
made text. What does not hold for all sizes that a graph serves counts as not so: a side stays, a band is not square.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from xattn.plugin.symbolic import known, larger, smaller


class Banded(Protocol):
    """A request of an op that has queries, keys, and a band."""

    @property
    def seqlen_q(self) -> int: ...
    @property
    def seqlen_k(self) -> int: ...
    @property
    def band(self) -> tuple[int | None, int | None]: ...
    @property
    def offset(self) -> int | None: ...


@dataclass(frozen=True)
class Geometry:
    """Query i of seqlen_q sees key j of seqlen_k when i + offset - left <= j <= i + offset + right.

    left, right: None is open. Both are >= 0 in a request; after `recounted` one may be negative, and left + right is
        what it was.
    """

    seqlen_q: int
    seqlen_k: int
    left: int | None
    right: int | None
    offset: int

    @classmethod
    def of(cls, request: Banded) -> Geometry:
        """Of a whole call. Raises ValueError for a request whose align is "offset": there off is known only when the
        plan runs, as its `align`.

        With seqlens_k the offset of "bottom_right" is another one in each batch row, and this is the geometry of a row
        of full length: of a shorter one only the sides that `opened` opens are known.
        """
        left, right = request.band
        if request.offset is None:
            raise ValueError('of align="offset" the plan alone knows the offset')
        return cls(request.seqlen_q, request.seqlen_k, left, right, request.offset)

    @property
    def band(self) -> tuple[int | None, int | None]:
        return self.left, self.right

    def seen(self) -> tuple[int, int, int, int]:
        """(first_q, end_q, first_k, end_k): queries [first_q, end_q) see a key, all others see none; keys
        [first_k, end_k) are seen by some query, all others by none. Each pair is equal where no query sees a key."""
        seqlen_q, seqlen_k, left, right, offset = self.seqlen_q, self.seqlen_k, self.left, self.right, self.offset
        if known(seqlen_q == 0) or known(seqlen_k == 0):
            return 0, 0, 0, 0
        first_q, end_q, first_k, end_k = 0, seqlen_q, 0, seqlen_k
        if right is not None:
            first_q = smaller(seqlen_q, larger(0, -offset - right))
        if left is not None:
            end_q = larger(first_q, smaller(seqlen_q, seqlen_k - offset + left))
            first_k = smaller(seqlen_k, larger(0, first_q + offset - left))
        if right is not None:
            end_k = larger(first_k, smaller(seqlen_k, end_q + offset + right))
        return first_q, end_q, first_k, end_k

    @property
    def first_q(self) -> int:
        """The first query that sees a key, as `seen` has it."""
        return self.seen()[0]

    @property
    def end_q(self) -> int:
        """One past the last query that sees a key."""
        return self.seen()[1]

    @property
    def first_k(self) -> int:
        """The first key that some query sees."""
        return self.seen()[2]

    @property
    def end_k(self) -> int:
        """One past the last key that some query sees."""
        return self.seen()[3]

    @property
    def causal(self) -> bool:
        """Whether no query sees a key behind the one that it is aligned with."""
        return self.right is not None and known(self.right == 0)

    @property
    def square(self) -> bool:
        """Whether it is causal from the first query and key to the last of both: "top_left" and "bottom_right" agree,
        and keys added behind the last would stay hidden from every query."""
        return self.causal and known(self.offset == 0) and known(self.seqlen_q == self.seqlen_k)

    @property
    def full(self) -> bool:
        """Whether every query sees every key."""
        return self.opened().band == (None, None)

    def opened(self) -> Geometry:
        """The same, with None for each side that hides nothing."""
        if known(self.seqlen_q == 0) or known(self.seqlen_k == 0):
            return Geometry(self.seqlen_q, self.seqlen_k, None, None, self.offset)
        left, right = self.left, self.right
        if left is not None and known(self.seqlen_q - 1 + self.offset <= left):
            left = None
        if right is not None and known(self.offset + right >= self.seqlen_k - 1):
            right = None
        return Geometry(self.seqlen_q, self.seqlen_k, left, right, self.offset)

    def part(self, first_q: int, end_q: int, first_k: int, end_k: int) -> Geometry:
        """Of queries [first_q, end_q) and keys [first_k, end_k) alone, each counted from its first."""
        offset = self.offset + first_q - first_k
        return Geometry(end_q - first_q, end_k - first_k, self.left, self.right, offset)

    def trimmed(self) -> Geometry:
        """The smallest equal problem: of the queries that see a key, first_q to end_q, and the keys that are seen,
        first_k to end_k, with the sides opened that hide nothing among these. Both sizes are 0 where no key is seen."""
        return self.part(*self.seen()).opened()

    def recounted(self, offset: int) -> Geometry:
        """The same pairs, with the sides counted from another diagonal: for kernels whose windows know one alignment
        only. A side that comes out negative is one that a kernel cannot be told."""
        shift = self.offset - offset
        left = None if self.left is None else self.left - shift
        right = None if self.right is None else self.right + shift
        return Geometry(self.seqlen_q, self.seqlen_k, left, right, offset)


def fill_dead_rows(out: Tensor, lse: Tensor | None, first_q: int, end_q: int, sinks: Tensor | None) -> None:
    """Write what the contract says of queries that see no key, those before first_q and those from end_q on: out is 0,
    lse is -inf, or the sink where there is one.

    out: (batch, seqlen_q, nheads, headdim_v). lse: (batch, nheads, seqlen_q). sinks: (nheads,). In place.
    """
    for first, end in ((0, first_q), (end_q, out.shape[1])):
        if first < end:
            out[:, first:end] = 0
            if lse is not None:
                lse[:, :, first:end] = -torch.inf if sinks is None else sinks[:, None]
