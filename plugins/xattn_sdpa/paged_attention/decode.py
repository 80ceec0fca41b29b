"""One query a sequence over its pages, on the CPU: which of three ways is the cheapest, and what is made once a step.

- small: all keys gathered at once, one call. Its buffers stay in the processor's cache.
- blocks of 512 keys: gathered block by block into the same buffers, and merged through the lse. One sequence whose
  pages lie one after the other is one block, where it lies.
- pool: every page is a batch row of one call, and nothing is gathered; the pages of a sequence are merged. It computes
  all pages of the pool, whoever has them, so it is for pools that are nearly full, and a merge must be cheap beside a
  page. Of the half types torch's kernel copies every key anyhow, and a gather costs next to nothing. Quantised pages
  are made numbers as they are gathered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from xattn.plugin.storage import Lists
from xattn_sdpa.attention.direct import FEW_KEYS
from xattn_sdpa.paged_attention.store import Store

_attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu

# Keys of a sequence that are gathered at once, and the bytes of those of all sequences.
_BLOCK, _BYTES = 512, 2**21
# For the pool: the smallest page, the largest batch, and the share of its pages that must be in use.
_POOL_PAGE, _POOL_BATCH, _POOL_USED = 64, 8, 0.75


@dataclass(frozen=True)
class Part:
    """Some sequences over some of their keys: one gather and one call.

    rows: of q, (count,), None for all. block: which of the sequences' blocks of keys. pages: (count * n,); in_order,
    where they lie one after the other, and are taken where they are. keys: of the longest. ends: of each sequence, None
    where all are `keys`. bias: (count, 1, 1, keys), -inf past the end; None where there is nothing to hide.
    """

    rows: Tensor | None
    block: int
    pages: Tensor
    in_order: bool
    keys: int
    ends: tuple[int, ...] | None
    bias: Tensor | None


@dataclass(frozen=True)
class Pool:
    """Whole pages where they lie, and the tails of sequences as a part.

    owner: (num_blocks,) the row of q that a page is computed for; one that nobody has is computed for row 0.
    pages: (rows, n), filled up with any page where `hidden` (rows, n, 1, 1) is True. hidden None: nothing to hide.
    """

    owner: Tensor
    pages: Tensor
    hidden: Tensor | None
    tails: Part | None


Way = tuple[Part, ...] | Pool


def way(lists: Lists, keys: Store) -> Way:
    """How a step is computed: by its sizes and the dtypes alone. Every sequence has a key."""
    assert lists.block_table is not None
    lengths, table = lists.seqlens_k, lists.block_table
    num_blocks, block_size, nheads_k = keys.cache.shape[:3]
    wide = keys.cache.dtype in (torch.float32, torch.float64)
    if wide and block_size >= _POOL_PAGE and len(lengths) <= _POOL_BATCH:
        whole = [row[: length // block_size] for row, length in zip(table, lengths, strict=True)]
        used = [page for row in whole for page in row]
        if len(used) >= _POOL_USED * num_blocks and len(set(used)) == len(used):
            return _pool(lists, whole, num_blocks, block_size)
    if keys.scale is None and len(lengths) == 1 and _in_order(table[0][: -(-lengths[0] // block_size)]):
        return (_part([0], 0, table, lengths, 1, block_size),)
    key_bytes = nheads_k * keys.headdim * keys.dtype.itemsize
    return _parts(lists, block_size, max(1, _BYTES // key_bytes))


def _parts(lists: Lists, block_size: int, room: int) -> tuple[Part, ...]:
    """In each block of keys, the sequences that fill it and those that end in it have a part each; where all end in the
    first one, that is the only one."""
    assert lists.block_table is not None
    lengths, table = lists.seqlens_k, lists.block_table
    pages = max(1, min(_BLOCK, room) // block_size)
    step = pages * block_size
    found = []
    for start in range(0, max(lengths), step):
        first = start // block_size
        filled = [b for b, length in enumerate(lengths) if length >= start + step]
        ending = [b for b, length in enumerate(lengths) if start < length < start + step]
        for rows, keys in ((filled, [step] * len(filled)), (ending, [lengths[b] - start for b in ending])):
            at_once = max(1, room // max(keys, default=1))
            for i in range(0, len(rows), at_once):
                some = rows[i : i + at_once]
                own = [table[b][first:] for b in some]
                found.append(_part(some, start // step, own, keys[i : i + at_once], len(lengths), block_size))
    return tuple(found)


def _part(rows: list[int], block: int, table: list[list[int]], lengths: list[int], batch: int, block_size: int) -> Part:
    longest = max(lengths)
    count = -(-longest // block_size)
    # A sequence that has fewer pages repeats its first one: its keys are hidden there.
    pages = []
    for row, length in zip(table, lengths, strict=True):
        own = -(-length // block_size)
        pages += row[:own] + row[:1] * (count - own)
    ragged = min(lengths) < longest
    bias = None
    if ragged:
        past = torch.arange(longest) >= torch.tensor(lengths).unsqueeze(1)
        bias = torch.zeros(past.shape).masked_fill_(past, -torch.inf)[:, None, None]
    elif longest < FEW_KEYS:
        bias = torch.zeros(1, 1, 1, longest)
    return Part(
        rows=None if len(rows) == batch else torch.tensor(rows),
        block=block,
        pages=torch.tensor(pages),
        in_order=not ragged and _in_order(pages),
        keys=longest,
        ends=tuple(lengths) if ragged else None,
        bias=bias,
    )


def _in_order(pages: Sequence[int]) -> bool:
    """Whether pages lie one after the other."""
    return list(pages) == list(range(pages[0], pages[0] + len(pages)))


def _pool(lists: Lists, whole: Sequence[list[int]], num_blocks: int, block_size: int) -> Pool:
    assert lists.block_table is not None
    owner = [0] * num_blocks
    for b, row in enumerate(whole):
        for page in row:
            owner[page] = b
    longest = max(map(len, whole))
    tails = [b for b, length in enumerate(lists.seqlens_k) if length % block_size]
    hidden = None
    if any(len(row) < longest for row in whole):
        counts = torch.tensor([len(row) for row in whole])
        hidden = (torch.arange(longest) >= counts.unsqueeze(1))[..., None, None]
    return Pool(
        owner=torch.tensor(owner),
        pages=torch.tensor([row + [0] * (longest - len(row)) for row in whole]),
        hidden=hidden,
        tails=_part(
            tails,
            0,
            [lists.block_table[b][len(whole[b]) :] for b in tails],
            [lists.seqlens_k[b] % block_size for b in tails],
            len(whole),
            block_size,
        )
        if tails
        else None,
    )


def forward(q: Tensor, keys: Store, values: Store, how: Way, scale: float) -> tuple[Tensor, Tensor]:
    """q: (batch, nheads, headdim). Returns out (batch, nheads, headdim) and lse (batch, nheads), wide."""
    batch, nheads, headdim = q.shape
    # The query heads of a group as the rows of one head: K and V are read once a group.
    nheads_k = keys.cache.shape[2]
    rows = q.reshape(batch, nheads_k, nheads // nheads_k, headdim)
    serve = _by_pool if isinstance(how, Pool) else _by_parts
    out, lse = serve(rows, keys, values, how, scale)  # type: ignore[arg-type]
    return out.reshape(q.shape), lse.reshape(batch, nheads)


def _by_parts(q: Tensor, keys: Store, values: Store, parts: tuple[Part, ...], scale: float) -> tuple[Tensor, Tensor]:
    if len(parts) == 1 and parts[0].rows is None:
        return _one(q, *_taken(keys, values, parts[0], (None, None)), parts[0], scale)
    size = max(len(part.pages) for part in parts)
    buffers = keys.buffer(size), None if values is keys else values.buffer(size)
    batch, *heads, headdim = q.shape
    blocks = parts[-1].block + 1
    outs = q.new_zeros(batch, blocks, *heads, headdim)
    lses = q.new_full(
        (batch, blocks, *heads), -torch.inf, dtype=torch.float64 if q.dtype == torch.float64 else torch.float32
    )
    for part in parts:
        out, lse = _one(q, *_taken(keys, values, part, buffers), part, scale)
        if part.rows is None:
            outs[:, part.block], lses[:, part.block] = out, lse
        else:
            outs[:, part.block].index_copy_(0, part.rows, out)
            lses[:, part.block].index_copy_(0, part.rows, lse)
    return (outs[:, 0], lses[:, 0]) if blocks == 1 else _merged(outs, lses)


def _taken(
    keys: Store, values: Store, part: Part, buffers: tuple[Tensor | None, Tensor | None]
) -> tuple[Tensor, Tensor]:
    """The pages of a part. What is both keys and values is taken once."""
    k_pages = keys.take(part.pages, buffers[0], part.in_order)
    return k_pages, k_pages if values is keys else values.take(part.pages, buffers[1], part.in_order)


def _one(q: Tensor, k_pages: Tensor, v_pages: Tensor, part: Part, scale: float) -> tuple[Tensor, Tensor]:
    """out (count, nheads_k, group, headdim) and lse (count, nheads_k, group) of a part, from its pages."""
    rows = q if part.rows is None else q.index_select(0, part.rows)
    keys, values = (x.view(len(rows), -1, *x.shape[2:]) for x in (k_pages, v_pages))
    if keys.shape[1] != part.keys:
        keys, values = keys[:, : part.keys], values[:, : part.keys]
    if part.ends is not None:
        # The places past an end may hold NaN, which a weight of 0 does not hide.
        for b, end in enumerate(part.ends):
            if end < part.keys:
                keys[b, end:] = 0
                values[b, end:] = 0
    # The kernel takes a bias of float32 beside float64 for one of float64.
    bias = part.bias if part.bias is None or q.dtype != torch.float64 else part.bias.double()
    found: tuple[Tensor, Tensor] = _attend(
        rows, keys.transpose(1, 2), values.transpose(1, 2), attn_mask=bias, scale=scale
    )
    return found


def _by_pool(q: Tensor, keys: Store, values: Store, pool: Pool, scale: float) -> tuple[Tensor, Tensor]:
    owned = q.index_select(0, pool.owner)
    out, lse = _attend(owned, keys.cache.transpose(1, 2), values.cache.transpose(1, 2), scale=scale)
    pages = pool.pages.flatten()
    outs, lses = (x.index_select(0, pages).unflatten(0, pool.pages.shape) for x in (out, lse))
    if pool.hidden is not None:
        outs.masked_fill_(pool.hidden.unsqueeze(-1), 0.0)
        lses.masked_fill_(pool.hidden, -torch.inf)
    if pool.tails is not None:
        tail_out, tail_lse = _by_parts(q, keys, values, (pool.tails,), scale)
        outs = torch.cat((outs, tail_out.unsqueeze(1)), 1)
        lses = torch.cat((lses, tail_lse.unsqueeze(1)), 1)
    return _merged(outs, lses)


def _merged(outs: Tensor, lses: Tensor) -> tuple[Tensor, Tensor]:
    """outs: (batch, blocks, nheads_k, group, headdim). Every row has a key in some block."""
    lse = torch.logsumexp(lses, 1)
    weights = torch.exp(lses - lse.unsqueeze(1))
    out = (outs * weights.unsqueeze(-1)).sum(1)
    return out.to(outs.dtype), lse
