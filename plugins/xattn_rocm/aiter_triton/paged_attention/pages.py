"""What `unified_attention` asks of a batch: tables and lengths that lead to no key but those that are seen.

Made by device operations alone, once a step for all layers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from xattn import PagedBatch

# The most keys in a tile of the kernel's. It reads the table to the end of a tile, and follows nothing past the keys.
TILE_MAX = 64


@dataclass(frozen=True)
class Tables:
    """table: block_table. starts: cu_seqlens_q. lengths: seqused_k."""

    table: Tensor
    starts: Tensor
    lengths: Tensor


def of_pages(batch: PagedBatch, block_size: int, left: int | None) -> Tables:
    """Pages as they lie. left: of the window: the pages before it are left out, as their entries may be any number."""
    room = TILE_MAX // block_size + 1
    starts = batch.starts_q.contiguous()
    if left is None:
        return Tables(F.pad(batch.block_table, (0, room)), starts, batch.seqlens_k.contiguous())
    first = _first_key(batch, left) // block_size
    pages = min(batch.block_table.shape[1], (left + batch.max_seqlen_q) // block_size + 2) + room
    table = _looked_up(batch.block_table, first.unsqueeze(1) + _count(pages, first))
    return Tables(table, starts, batch.seqlens_k - first * block_size)


def of_keys(batch: PagedBatch, block_size: int, left: int | None, steps: tuple[int, int], last: int) -> Tables:
    """Each key as a page of its own, so that every load is masked, and the first is the first that is seen.

    steps: how far pages, and keys in a page, lie from each other, in the units that the table counts. last: a bound
    of its entries.
    """
    first = torch.zeros_like(batch.seqlens_k) if left is None else _first_key(batch, left)
    keys = batch.max_seqlen_k if left is None else min(batch.max_seqlen_k, left + batch.max_seqlen_q)
    key = first.unsqueeze(1) + _count(keys + TILE_MAX, first)
    page = _looked_up(batch.block_table, key // block_size)
    if last >= 2**31:
        page = page.long()
    table = page * steps[0] + (key % block_size) * steps[1]
    return Tables(table, batch.starts_q.contiguous(), batch.seqlens_k - first)


def steps(cache: Tensor) -> tuple[int, int, int]:
    """The distance of two pages and of two keys of a page, in units, and the unit, in elements."""
    unit = math.gcd(cache.stride(0), cache.stride(1)) or 1
    return cache.stride(0) // unit, cache.stride(1) // unit, unit


def _first_key(batch: PagedBatch, left: int) -> Tensor:
    """The first key that some query of each sequence sees: (batch,)."""
    return (batch.seqlens_k - batch.seqlens_q - left).clamp_min(0)


def _count(size: int, like: Tensor) -> Tensor:
    return torch.arange(size, dtype=torch.int32, device=like.device)


def _looked_up(table: Tensor, column: Tensor) -> Tensor:
    """Past the last column there is no key."""
    return table.gather(1, column.clamp_max(table.shape[1] - 1).long())
