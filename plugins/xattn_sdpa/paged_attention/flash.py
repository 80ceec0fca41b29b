"""Pages on CUDA: the keys of each sequence are gathered, and torch's flash kernel runs over them as over packed ones.

Nothing is read from the device, and sizes are the batch's bounds: a CUDA graph replays with other lengths and tables.
A gather is of the pages that the bounds allow, or those that a window shows: a tight max_seqlen_k is a fast one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from xattn import PagedBatch
from xattn_sdpa.attention.engine import Settings
from xattn_sdpa.paged_attention.store import Store
from xattn_sdpa.varlen_attention.flash import attend, empty_result, join_sinks, nothing
from xattn_sdpa.varlen_attention.sequences import Sequences, sequences

# Bytes of keys and values that a step of one query each gathers at once: some sequences, or one.
_BYTES = 2**30


def forward(
    q: Tensor, k_store: Store, v_store: Store, batch: PagedBatch, sinks: Tensor | None, settings: Settings
) -> tuple[Tensor, Tensor]:
    """As the engine's."""
    starts_q = batch.starts_q
    most = min(batch.max_seqlen_k, batch.block_table.shape[1] * k_store.block_size)
    if nothing(q, k_store.cache, starts_q, (batch.max_seqlen_q, most)):
        out, lse = empty_result(q, v_store.headdim)
    elif batch.cu_seqlens_q is None:
        out, lse = _one_query(q, k_store, v_store, batch, most, settings)
    else:
        out, lse = _any_queries(q, k_store, v_store, batch, most, settings)
    return out, lse if sinks is None else join_sinks(out, lse, sinks, starts_q)


def _any_queries(
    q: Tensor, k_store: Store, v_store: Store, batch: PagedBatch, most: int, settings: Settings
) -> tuple[Tensor, Tensor]:
    starts_q = batch.starts_q
    bounds, band = (batch.max_seqlen_q, most), (settings.left, settings.right)
    found = sequences((starts_q, starts_q), (len(q), 0), bounds, band, every_key=False)
    pages = _pages(most, k_store.block_size, found.left, batch.max_seqlen_q)
    keys = _keys(batch.block_table, batch.seqlens_k, starts_q.diff(), k_store.block_size, pages, found.left)
    # What fills up the rows behind the last sequence has no keys.
    behind = len(found.ends_q) - len(keys.starts)
    starts, used = F.pad(keys.starts, (0, behind)), F.pad(keys.used, (0, behind))
    gathered = keys.of(k_store), keys.of(v_store)
    return attend(q, *gathered, replace(found, ends_k=starts), settings.scale, used)


def _one_query(
    q: Tensor, k_store: Store, v_store: Store, batch: PagedBatch, most: int, settings: Settings
) -> tuple[Tensor, Tensor]:
    """Each sequence sees all keys from the first that its window shows, so the kernel gets no band: it splits the keys
    of a sequence over the card, which it does not beside a band."""
    block_size = k_store.block_size
    starts_q, ones = batch.starts_q, torch.ones_like(batch.seqlens_k)
    pages = _pages(most, block_size, settings.left, 1)
    key = k_store.cache.shape[2] * (k_store.headdim + v_store.headdim) * q.itemsize
    step = max(1, _BYTES // (pages * block_size * key))
    outs, lses = [], []
    for first in range(0, batch.batch, step):
        rows = slice(first, first + step)
        keys = _keys(batch.block_table[rows], batch.seqlens_k[rows], ones[rows], block_size, pages, settings.left)
        found = Sequences(starts_q[: len(keys.starts)], keys.starts, 1, pages * block_size, None, None)
        out, lse = attend(q[rows], keys.of(k_store), keys.of(v_store), found, settings.scale, keys.used)
        outs.append(out)
        lses.append(lse)
    return (outs[0], lses[0]) if len(outs) == 1 else (torch.cat(outs), torch.cat(lses, 1))


@dataclass(frozen=True)
class _Keys:
    """Where the keys of some sequences are, those that no query sees left out.

    pages: (batch * n,), n of each sequence. starts: (batch + 1,) int32, where its keys begin among the gathered ones.
    used: (batch,) int32, how many there are.
    """

    pages: Tensor
    starts: Tensor
    used: Tensor

    def of(self, store: Store) -> Tensor:
        """(batch * n * block_size, nheads_k, headdim)"""
        return store.take(self.pages).flatten(0, 1)


def _pages(most: int, block_size: int, left: int | None, max_seqlen_q: int) -> int:
    """In how many pages the keys lie that a sequence may see."""
    pages = -(-most // block_size)
    # So many keys in a row lie in no more pages, wherever they begin.
    return pages if left is None else min(pages, -(-(max_seqlen_q + left) // block_size) + 1)


def _keys(
    block_table: Tensor, seqlens_k: Tensor, seqlens_q: Tensor, block_size: int, pages: int, left: int | None
) -> _Keys:
    batch, columns = block_table.shape
    first = torch.zeros_like(seqlens_k)
    if left is not None:
        first = (seqlens_k - seqlens_q - min(left, columns * block_size)).clamp_min(0)
    skipped = first // block_size
    column = skipped.unsqueeze(1) + torch.arange(pages, dtype=torch.int32, device=block_table.device)
    # No page is loaded for a key that no query sees: its entry may be any number.
    seen = (column * block_size < seqlens_k.unsqueeze(1)) & (seqlens_q > 0).unsqueeze(1)
    page = torch.where(seen, block_table.gather(1, column.clamp_max(columns - 1).long()), 0)
    starts = torch.arange(batch + 1, dtype=torch.int32, device=block_table.device) * (pages * block_size)
    starts[:-1] += first - skipped * block_size
    return _Keys(page.flatten(), starts, seqlens_k - first)
