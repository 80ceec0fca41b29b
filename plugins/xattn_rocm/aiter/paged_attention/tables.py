"""The two tables that `mha_batch_prefill_func` takes, with no entry that leads nowhere.

Made by device operations alone, once a step for all layers.

CK loads keys in tiles of 128, beyond the last of a sequence and before the first that a window shows. What it loads
there is hidden; the entries that it loads by have to be pages.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from xattn import PagedBatch

_TILE = 128


@dataclass(frozen=True)
class Tables:
    """starts: cu_seqlens_q. lengths: of the keys that the table leads to. indptr, indices: of CSR; of a block_table the
    first is as long as it must be, and the second is the table."""

    starts: Tensor
    lengths: Tensor
    indptr: Tensor
    indices: Tensor


def of_pages(batch: PagedBatch, block_size: int, left: int | None) -> Tables:
    """As a block_table, from the first page that some query sees on."""
    starts, first = batch.starts_q.contiguous(), _first_key(batch, left) // block_size
    lengths = batch.seqlens_k - first * block_size
    columns = -(-batch.max_seqlen_k // block_size) + _TILE // block_size + 1
    column = first.unsqueeze(1) + _count(columns, first)
    table = _looked_up(batch, column, column * block_size)
    return Tables(starts, lengths, torch.zeros_like(starts), table)


def of_keys(batch: PagedBatch, block_size: int, left: int | None) -> Tables:
    """As CSR of pages of one key: the keys that some query sees, of one sequence after the other."""
    starts, first = batch.starts_q.contiguous(), _first_key(batch, left)
    lengths = torch.where(batch.seqlens_q > 0, batch.seqlens_k - first, 0)
    key = first.unsqueeze(1) + _count(batch.max_seqlen_k, first)
    slot = _looked_up(batch, key // block_size, key) * block_size + key % block_size
    indptr = F.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
    # A key that is not there goes behind all of them.
    room = key.numel()
    place = torch.where(
        key < batch.seqlens_k.unsqueeze(1), indptr[:-1].unsqueeze(1) + _count(key.shape[1], first), room
    )
    place = torch.where((batch.seqlens_q > 0).unsqueeze(1), place, room)
    indices = torch.zeros(room + _TILE, dtype=torch.int32, device=slot.device)
    indices.scatter_(0, place.flatten().long(), slot.flatten())
    indices[room] = 0
    return Tables(starts, lengths, indptr, indices)


def _first_key(batch: PagedBatch, left: int | None) -> Tensor:
    """The first key that some query of each sequence sees: (batch,)."""
    if left is None:
        return torch.zeros_like(batch.seqlens_k)
    return torch.minimum((batch.seqlens_k - batch.seqlens_q - left).clamp_min(0), batch.seqlens_k)


def _looked_up(batch: PagedBatch, column: Tensor, key: Tensor) -> Tensor:
    """The pages in these columns, and page 0 where the first key there is past the end."""
    table = batch.block_table
    seen = (key < batch.seqlens_k.unsqueeze(1)) & (batch.seqlens_q > 0).unsqueeze(1)
    return torch.where(seen, table.gather(1, column.clamp_max(table.shape[1] - 1).long()), 0)


def _count(size: int, like: Tensor) -> Tensor:
    return torch.arange(size, dtype=torch.int32, device=like.device)
