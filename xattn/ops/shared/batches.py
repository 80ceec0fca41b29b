"""From a table, lengths and bounds to the batch that a plan takes, what of a batch decides a plan, and what it may
hold."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from xattn.errors import InvalidArgumentError
from xattn.ops.shared import checks, lengths, pages
from xattn.plugin.storage import Lists, PagedBatch
from xattn.plugin.symbolic import holds

# (left, right) of a call: which keys a query sees, counted from its diagonal; None is open.
Band = tuple[int | None, int | None]


def batch_of(
    q: Tensor,
    block_table: Any,
    seqlens_k: Any,
    cu_seqlens_q: Any,
    max_seqlen_q: Any,
    max_seqlen_k: Any,
    tree_mask: Any = None,
) -> PagedBatch:
    """The batch that a call means, with bounds that are ints. Raises InvalidArgumentError for parts of the wrong kind,
    and for parts beside a batch."""
    if isinstance(block_table, PagedBatch):
        batch = block_table
        beside = {"seqlens_k": seqlens_k, "cu_seqlens_q": cu_seqlens_q}
        beside |= {"max_seqlen_q": max_seqlen_q, "max_seqlen_k": max_seqlen_k}
        for name, given in beside.items():
            if given is not None:
                raise InvalidArgumentError(name, checks.short(given), "None beside a PagedBatch, which has its own")
        if batch.kind is not None:
            return batch
    else:
        batch = PagedBatch(block_table, seqlens_k, cu_seqlens_q, max_seqlen_q=max_seqlen_q, max_seqlen_k=max_seqlen_k)
        one_query = cu_seqlens_q is None and max_seqlen_q is not None
        if one_query and lengths.given_bound("max_seqlen_q", max_seqlen_q) < 1:
            raise InvalidArgumentError("max_seqlen_q", str(max_seqlen_q), "at least 1, the queries of each sequence")
    _check_parts(batch, q)
    if batch.cu_seqlens_q is not None:
        if batch.max_seqlen_q is None and checks.has_rank(tree_mask, 2):
            batch.max_seqlen_q = tree_mask.shape[1]
        batch.max_seqlen_q = lengths.bound("max_seqlen_q", batch.max_seqlen_q, batch.cu_seqlens_q)
    batch.max_seqlen_k = lengths.bound_of_lengths("max_seqlen_k", batch.max_seqlen_k, batch.seqlens_k)
    if not is_dynamo_compiling():
        batch.kind = kind_of(batch)
    return batch


def kind_of(batch: PagedBatch) -> Hashable:
    """What of a batch decides a plan."""
    return (
        batch.cu_seqlens_q is None,
        *map(lengths.bucket_of, (batch.batch, batch.max_seqlen_q, batch.max_seqlen_k)),
        batch.seqlens_k.device,
        batch.on_host,
    )


def _check_parts(batch: PagedBatch, q: Tensor) -> None:
    """Types, dtypes, devices and sizes."""
    table, keys, starts = batch.block_table, batch.seqlens_k, batch.cu_seqlens_q
    pages.check_local(block_table=table, seqlens_k=keys, cu_seqlens_q=starts)
    for name, tensor in (("block_table", table), ("seqlens_k", keys), ("cu_seqlens_q", starts)):
        if name == "cu_seqlens_q" and tensor is None:
            continue
        checks.check_tensor(name, tensor)
        checks.check_option(name, tensor, q, "int32", {})
    if table.dim() != 2:
        raise InvalidArgumentError("block_table", f"shape {tuple(table.shape)}", "2 dimensions, (batch, pages)")
    rows = table.shape[0]
    if keys.dim() != 1 or holds(keys.shape[0] != rows):
        raise InvalidArgumentError(
            "seqlens_k", f"shape {tuple(keys.shape)}", f"({rows},), one for each row of the table"
        )
    if starts is not None and (starts.dim() != 1 or holds(starts.shape[0] != rows + 1)):
        want = f"({rows + 1},), beginning with 0, for {rows} sequences"
        raise InvalidArgumentError("cu_seqlens_q", f"shape {tuple(starts.shape)}", want)
    if starts is None and checks.has_rank(q, 3) and holds(q.shape[0] != rows):
        raise _other_rows(q, rows)


def check_one_query(q: Tensor, batch: PagedBatch) -> None:
    """Without cu_seqlens_q there is a row of q for each sequence, in each call."""
    if batch.cu_seqlens_q is None and q.shape[0] != batch.batch:
        raise _other_rows(q, batch.batch)


def _other_rows(q: Tensor, batch: int) -> InvalidArgumentError:
    hint = "Without cu_seqlens_q every sequence has one query."
    return InvalidArgumentError("q", f"total_q {q.shape[0]}", f"{batch}, one for each sequence", hint)


def check_step(q: Tensor, cache: Tensor, batch: PagedBatch, *, band: Band | None, align: object, check: bool) -> None:
    """Check how many queries there are, and the values: lengths, bounds, and the pages that are looked at, once for
    each step of a batch.

    cache: (num_blocks, block_size, ...). band: of the call; None where it is not known, and then no page is looked at.
    Looked at are values on the CPU, those that `update_` got as lists, and others on a device where `check` asks for
    it, which stops the stream. May run before a call is described, so it passes over what that rejects.
    """
    check_one_query(q, batch)
    if not checks.readable(batch.seqlens_k, torch.int32, on_device=True) or not cache.shape[1]:
        return
    found = batch.lists(on_device=check)
    if found is None:
        return
    # The numbers of an align are no part of what was looked at, unless the band makes them count.
    offsets = _offsets(align, batch.batch, on_device=check) if band not in (None, (None, None)) else None
    sizes = (q.shape[0], *cache.shape[:2], batch.block_table.shape[1])
    looked_at = (sizes, band, None if offsets is None else tuple(offsets))
    if looked_at not in batch.passed:
        _check_lists(found, q, batch, sizes, band, offsets)
        batch.passed.add(looked_at)


def _offsets(align: object, batch: int, on_device: bool) -> list[int | None]:
    """`off` of each sequence; None is that of "bottom_right"."""
    if isinstance(align, Tensor):
        return align.tolist() if checks.readable(align, torch.int32, on_device=on_device) else [None] * batch
    if isinstance(align, int):
        return [align] * batch
    return [0 if align == "top_left" else None] * batch


def _check_lists(
    found: Lists,
    q: Tensor,
    batch: PagedBatch,
    sizes: tuple[int, ...],
    band: Band | None,
    offsets: list[int | None] | None,
) -> None:
    _, num_blocks, block_size, columns = sizes
    lengths.check_starts("cu_seqlens_q", found.starts_q, q, "max_seqlen_q", batch.max_seqlen_q)
    capacity = columns * block_size
    for b, length in enumerate(found.seqlens_k):
        if not 0 <= length <= capacity:
            want = f"0 to {capacity}, what {columns} blocks of {block_size} hold"
            raise InvalidArgumentError("seqlens_k", f"{length} at {b}", want)
        if batch.max_seqlen_k is not None and length > batch.max_seqlen_k:
            want = f"at least {length}, the length of sequence {b}"
            raise InvalidArgumentError("max_seqlen_k", str(batch.max_seqlen_k), want)
        if found.block_table is None or band is None:
            continue
        first, end = found.seen(b, *band, None if offsets is None else offsets[b])
        pages = found.block_table[b][first // block_size : -(-end // block_size)] if end else []
        if len(pages) < -(-end // block_size) - first // block_size:
            want = f"a page for each of {length} keys"
            raise InvalidArgumentError("block_table", f"{len(found.block_table[b])} pages of sequence {b}", want)
        if pages and not (min(pages) >= 0 and max(pages) < num_blocks):
            wrong = next(page for page in pages if not 0 <= page < num_blocks)
            want = f"0 to {num_blocks - 1}" if num_blocks else "no page: there are no blocks"
            hint = "Only pages that no query sees may be any number."
            raise InvalidArgumentError("block_table", f"page {wrong} of sequence {b}", want, hint)
