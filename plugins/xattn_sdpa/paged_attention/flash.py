"""Pages on CUDA: the keys of each sequence are gathered, and torch's flash kernel runs over them as over packed ones;
of one query each it runs over the pages where they lie, if they are large enough.

Nothing is read from the device, and sizes are the batch's bounds: a CUDA graph replays with other lengths and tables.
A gather is of the pages that the bounds allow, or those that a window shows: a tight max_seqlen_k is a fast one.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from xattn import PagedBatch
from xattn_sdpa.attention.engine import Settings
from xattn_sdpa.paged_attention import in_place
from xattn_sdpa.paged_attention.seen import Seen, count, seen
from xattn_sdpa.varlen_attention.flash import attend, empty_result, join_sinks, nothing
from xattn_sdpa.varlen_attention.sequences import Sequences, sequences

# Bytes of keys and values that a step of one query each gathers at once: some sequences, or one.
_BYTES = 2**30


def forward(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, batch: PagedBatch, sinks: Tensor | None, settings: Settings
) -> tuple[Tensor, Tensor]:
    """As the engine's."""
    starts_q = batch.starts_q
    most = min(batch.max_seqlen_k, batch.block_table.shape[1] * k_cache.shape[1])
    if nothing(q, k_cache, starts_q, (batch.max_seqlen_q, most)):
        out, lse = empty_result(q, v_cache)
    elif batch.cu_seqlens_q is None:
        out, lse = _one_query(q, k_cache, v_cache, batch, most, settings)
    else:
        out, lse = _any_queries(q, k_cache, v_cache, batch, most, settings)
    return out, lse if sinks is None else join_sinks(out, lse, sinks, starts_q)


def _any_queries(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, batch: PagedBatch, most: int, settings: Settings
) -> tuple[Tensor, Tensor]:
    block_size, starts_q = k_cache.shape[1], batch.starts_q
    bounds, band = (batch.max_seqlen_q, most), (settings.left, settings.right)
    found = sequences((starts_q, starts_q), (len(q), 0), bounds, band, every_key=False)
    pages = count(most, block_size, found.left, batch.max_seqlen_q)
    keys = seen(batch.block_table, batch.seqlens_k, starts_q.diff(), block_size, pages, found.left)
    starts = _starts(keys, block_size)
    # What fills up the rows behind the last sequence has no keys.
    behind = len(found.ends_q) - len(starts)
    starts, used = F.pad(starts, (0, behind)), F.pad(keys.end - keys.first, (0, behind))
    k, v = _gathered(keys, k_cache), _gathered(keys, v_cache)
    return attend(q, k, v, replace(found, ends_k=starts), settings.scale, used)


def _one_query(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, batch: PagedBatch, most: int, settings: Settings
) -> tuple[Tensor, Tensor]:
    """Each sequence sees all keys from the first that its window shows, so the kernel gets no band."""
    block_size = k_cache.shape[1]
    pages = count(most, block_size, settings.left, 1)
    where = in_place.rows(k_cache, v_cache) if in_place.pays(block_size, pages) else None
    key = sum(cache.shape[2] * cache.shape[3] for cache in (k_cache, v_cache)) * k_cache.itemsize
    step = max(1, _BYTES // (pages * block_size * key)) if where is None else in_place.AT_ONCE // pages
    starts_q, ones = batch.starts_q, torch.ones_like(batch.seqlens_k)
    outs, lses = [], []
    for first in range(0, batch.batch, step):
        part = slice(first, first + step)
        keys = seen(batch.block_table[part], batch.seqlens_k[part], ones[part], block_size, pages, settings.left)
        if where is not None:
            out, lse = in_place.attend(q[part], where, keys, block_size, settings.scale)
        else:
            starts = _starts(keys, block_size)
            # The kernel splits the keys of a sequence over the card, which it does not beside a band.
            found = Sequences(starts_q[: len(starts)], starts, 1, pages * block_size, None, None)
            k, v = _gathered(keys, k_cache), _gathered(keys, v_cache)
            out, lse = attend(q[part], k, v, found, settings.scale, keys.end - keys.first)
            del k, v  # before the next ones are there
        outs.append(out)
        lses.append(lse)
    return (outs[0], lses[0]) if len(outs) == 1 else (torch.cat(outs), torch.cat(lses, 1))


def _gathered(keys: Seen, cache: Tensor) -> Tensor:
    """(batch * n * block_size, nheads_k, columns)"""
    return cache.index_select(0, keys.pages.flatten()).flatten(0, 1)


def _starts(keys: Seen, block_size: int) -> Tensor:
    """(batch + 1,) int32: where the keys of each sequence begin among the gathered ones."""
    batch, pages = keys.pages.shape
    starts = torch.arange(batch + 1, dtype=torch.int32, device=keys.pages.device) * (pages * block_size)
    starts[:-1] += keys.first - keys.skipped * block_size
    return starts
