"""Tables and lengths that lead kernels to no page but those that are seen."""

from __future__ import annotations

import torch
from torch import Tensor

from xattn import PagedBatch


def of(batch: PagedBatch, block_size: int, left: int | None) -> tuple[Tensor, Tensor]:
    """page_table and seqused_k. left: of the window: pages before it are left out, as their entries may be any number,
    and the kernel loads whole tiles of keys."""
    if left is None:
        return batch.block_table if batch.block_table.stride(1) == 1 else batch.block_table.contiguous(), _dense(batch)

    def make() -> tuple[Tensor, Tensor]:
        first = (batch.seqlens_k - batch.seqlens_q - left).clamp_min(0) // block_size
        columns = batch.block_table.shape[1]
        column = first.unsqueeze(1) + torch.arange(columns, dtype=torch.int32, device=first.device)
        table = batch.block_table.gather(1, column.clamp_max(columns - 1).long())
        # A tile may begin before the first key that is seen, but in no page before its page.
        return table, batch.seqlens_k - first * block_size

    # Once a step; in a graph, which is replayed with other values, in each call.
    captured = torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
    return make() if captured else batch.derived(("nvidia pages", block_size, left), make)


def _dense(batch: PagedBatch) -> Tensor:
    return batch.seqlens_k.contiguous()


def looked_up(batch: PagedBatch, block_size: int, left: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """For kernels of one query a sequence that look up pages which it does not see, and take no length of 0: the table
    with page 0 in their place, lengths of at least 1, and (batch,) which of them were 0. left: of the window."""

    def make() -> tuple[Tensor, Tensor, Tensor]:
        column = torch.arange(batch.block_table.shape[1], dtype=torch.int32, device=batch.seqlens_k.device)
        lengths = batch.seqlens_k.unsqueeze(1)
        seen = column * block_size < lengths
        if left is not None:
            seen &= (column + 1) * block_size >= lengths - left
        table = torch.where(seen, batch.block_table, 0)
        return table, batch.seqlens_k.clamp_min(1), batch.seqlens_k <= 0

    captured = torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
    return make() if captured else batch.derived(("nvidia lookups", block_size, left), make)
