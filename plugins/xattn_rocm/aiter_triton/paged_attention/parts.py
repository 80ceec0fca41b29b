"""What kernels ask that take new keys apart from the pages: made by device operations alone, once a step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from xattn import PagedBatch


@dataclass(frozen=True)
class Parts:
    """Each sequence in two: first its queries that see no key, as there are more of them than keys, then the others.

    starts:  (2 batch + 1,) of cu_seqlens_q. lengths: (2 batch,), the new keys among them; 0 of the first parts.
    table:   (2 batch, pages).
    page, place: (total_q,) where in the caches the key of each query's token lies; of those without one, the first.
    without: (total_q,) which have none: queries that see no key, and rows of no sequence.
    """

    starts: Tensor
    lengths: Tensor
    table: Tensor
    page: Tensor
    place: Tensor
    without: Tensor

    def new(self, cache: Tensor) -> Tensor:
        """(total_q, nheads_k, headdim): the new keys, or values."""
        return cache[self.page, self.place]


def in_parts(batch: PagedBatch, total_q: int, block_size: int) -> Parts:
    begin, end, keys = batch.starts_q[:-1], batch.starts_q[1:], batch.seqlens_k
    dead = (end - begin - keys).clamp_min(0)
    row = torch.arange(total_q, dtype=torch.int32, device=keys.device)
    sequence = torch.searchsorted(end.contiguous(), row, right=True).clamp_max(batch.batch - 1)
    key = keys[sequence] - (end[sequence] - row)
    without = (key < 0) | (row >= end[-1])
    key = key.masked_fill(without, 0)
    column = (key // block_size).clamp_max(batch.block_table.shape[1] - 1)
    page = batch.block_table[sequence, column].masked_fill(without, 0)
    return Parts(
        starts=torch.cat((torch.stack((begin, begin + dead), 1).flatten(), end[-1:])),
        lengths=torch.stack((torch.zeros_like(keys), keys), 1).flatten(),
        table=batch.block_table.repeat_interleave(2, 0),
        page=page,
        place=key % block_size,
        without=without,
    )
