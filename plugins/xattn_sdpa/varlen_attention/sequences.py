"""Packed sequences as torch's flash kernel takes them on CUDA: how the sequences of a call are cut and filled up, by
operations on the device alone.

The kernel writes the rows of its sequences and no others, so the padding behind them is made sequences of its own:
queries without keys, which get 0, and keys without queries, whose gradients are 0. And it multiplies what a band hides
by zero, where a NaN would stay: so keys in front of the band of a sequence's first query, and queries in front of its
first key, are sequences of their own as well.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# A launch has at most 65,535 sequences. Each may be cut in two, and the padding of either side is cut into so many.
MOST = 2**14
_PADDING = 2**13
# The kernel takes queries in tiles of up to so many, so a lower bound saves nothing. With a bound of 1 it would take
# token b for the query of sequence b, whatever the lengths say.
_LEAST = 128


@dataclass(frozen=True)
class Sequences:
    """Sequence b is rows ends[b] to ends[b + 1], by (n + 1,) int32 tensors. bound_q, bound_k: no sequence is longer.
    left, right: the band, None where a side hides nothing."""

    ends_q: Tensor
    ends_k: Tensor
    bound_q: int
    bound_k: int
    left: int | None
    right: int | None


def sequences(
    cu_seqlens: tuple[Tensor, Tensor],
    totals: tuple[int, int],
    bounds: tuple[int, int],
    band: tuple[int | None, int | None],
    every_key: bool,
) -> Sequences:
    """Of a call: cu_seqlens, totals and bounds of its queries and keys. every_key: keys that belong to no sequence are
    sequences too, for the kernel that writes their gradients."""
    ends_q, ends_k = cu_seqlens
    bound_q, bound_k = (max(_LEAST, bound, -(-total // _PADDING)) for bound, total in zip(bounds, totals, strict=True))
    # The kernel takes a side that is not smaller than the bound of the keys for an open one, which holds with more
    # queries than keys only if the bound is one of the queries too.
    bound_k = max(bound_k, bound_q)
    left, right = (None if side is None or side >= bound_k else side for side in band)
    if ends_k is not ends_q and (left is not None or right is not None):
        ends_q, ends_k = _cut(ends_q, ends_k, left, right)
    behind_q = _behind(ends_q, totals[0], bound_q)
    parts_q, parts_k = [ends_q, behind_q], [ends_k, ends_k[-1:].expand(len(behind_q))]
    if every_key:
        behind_k = _behind(ends_k, totals[1], bound_k)
        parts_q.append(behind_q[-1:].expand(len(behind_k)))
        parts_k.append(behind_k)
    return Sequences(torch.cat(parts_q), torch.cat(parts_k), bound_q, bound_k, left, right)


def _cut(ends_q: Tensor, ends_k: Tensor, left: int | None, right: int | None) -> tuple[Tensor, Tensor]:
    """Each sequence as two, of which the first has what comes too early to see or to be seen: queries or keys, never
    both."""
    off = ends_k.diff() - ends_q.diff()
    first_q, first_k = ends_q[:-1], ends_k[:-1]
    if right is not None:
        first_q = first_q + (-right - off).clamp_min(0)
    if left is not None:
        first_k = first_k + (off - left).clamp_min(0)
    return _between(ends_q, first_q), _between(ends_k, first_k)


def _between(ends: Tensor, cuts: Tensor) -> Tensor:
    return torch.cat((torch.stack((ends[:-1], cuts), 1).flatten(), ends[-1:]))


def _behind(ends: Tensor, total: int, bound: int) -> Tensor:
    """Ends of sequences that fill the rows from ends[-1] to total, none of more than `bound` rows. As many, some of
    them empty, as would fill all rows: where the padding begins is known on the device alone."""
    count = -(-total // bound)
    at = torch.arange(total - (count - 1) * bound, total + 1, bound, dtype=torch.int32, device=ends.device)
    return torch.maximum(at, ends[-1:])
