"""A tree among the new tokens as the custom mask of `extend`: by device operations alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from xattn import PagedBatch
from xattn_rocm.aiter_triton.paged_attention.parts import Parts


@dataclass(frozen=True)
class Tree:
    """mask:  of each sequence a row a query, as long as the keys before the new ones and the queries together; the
            kernel reads it among the new ones alone.
    at:      (batch,) where the rows of each sequence begin.
    hidden:  (total_q,) the tokens whose values no query sees: they may hold NaN.
    dead:    (total_q,) the queries that see no key, and rows of no sequence.
    """

    mask: Tensor
    at: Tensor
    hidden: Tensor
    dead: Tensor


def flattened(batch: PagedBatch, tree_mask: Tensor, parts: Parts) -> Tree:
    total_q, most = tree_mask.shape
    begin, queries, keys = batch.starts_q[:-1].long(), batch.seqlens_q.long(), batch.seqlens_k.long()
    before = (keys - queries).clamp_min(0)
    ends = (queries * (before + queries)).cumsum(0)
    at = ends - queries * (before + queries)

    row = torch.arange(total_q, device=keys.device)
    column = torch.arange(most, device=keys.device)
    nobody = row >= batch.starts_q[-1]
    sequence = torch.searchsorted(batch.starts_q[1:].contiguous(), row, right=True).clamp_max(batch.batch - 1)
    place = (row - begin[sequence]).masked_fill(nobody, 0)
    count = queries[sequence].unsqueeze(1)
    # Of more queries than keys the first tokens have no key.
    there = (column < count) & (column >= count - keys[sequence].unsqueeze(1)) & ~nobody.unsqueeze(1)
    seen = tree_mask & there

    # What is no query's goes to the end.
    room = total_q * max(batch.max_seqlen_k, batch.max_seqlen_q)
    mask = torch.zeros(room + 1, dtype=torch.bool, device=keys.device)
    length = (before + queries)[sequence]
    index = (at[sequence] + place * length + before[sequence]).unsqueeze(1) + column
    mask[torch.where(there, index, room)] = seen

    seers = torch.zeros(batch.batch * most, dtype=torch.int32, device=keys.device)
    seers.index_add_(0, (sequence.unsqueeze(1) * most + column).flatten(), seen.flatten().int())
    unseen = seers[sequence * most + place.clamp_max(most - 1)] == 0
    dead = nobody | ((before[sequence] == 0) & ~seen.any(1))
    return Tree(mask, at, unseen | parts.without, dead)
