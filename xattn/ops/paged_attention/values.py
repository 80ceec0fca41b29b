"""Checks of what no shape tells in a call of `paged_attention`: lengths, bounds, and the pages that are looked at."""

from __future__ import annotations

import torch
from torch import Tensor

from xattn.errors import InvalidArgumentError
from xattn.ops.shared import checks, lengths
from xattn.plugin.storage import Lists, PagedBatch

Band = tuple[int | None, int | None]


def check_values(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    batch: PagedBatch,
    *,
    band: Band | None = None,
    align: object = "bottom_right",
    alibi_slopes: Tensor | None = None,
    tree_mask: Tensor | None = None,
    check: bool = False,
    **others: object,
) -> None:
    """Check the sizes that a plan does not depend on, and the values: once for each step of a batch.

    band: of the call; None where it is not known, and then no page is looked at.
    Looked at are values on the CPU, those that `update_` got as lists, and others on a device where `check` asks for
    it, which stops the stream. May run before a call is described, so it passes over what that rejects.
    """
    if not (checks.has_rank(q, 3) and all(checks.has_rank(each, 4) for each in (k_cache, v_cache))):
        return
    _check_free_sizes(q, batch, align, alibi_slopes, tree_mask)
    checks.check_slopes(alibi_slopes)
    if not checks.readable(batch.seqlens_k, torch.int32, on_device=True) or not k_cache.shape[1]:
        return
    found = batch.lists(on_device=check)
    if found is None:
        return
    # The numbers of an align are no part of what was looked at, unless the band makes them count.
    offsets = _offsets(align, batch.batch, on_device=check) if band not in (None, (None, None)) else None
    sizes = (q.shape[0], *k_cache.shape[:2], batch.block_table.shape[1])
    looked_at = (sizes, band, None if offsets is None else tuple(offsets))
    if looked_at not in batch.passed:
        _check(found, q, batch, sizes, band, offsets)
        batch.passed.add(looked_at)


def _check_free_sizes(
    q: Tensor, batch: PagedBatch, align: object, slopes: Tensor | None, tree_mask: Tensor | None
) -> None:
    """Those that must agree from call to call."""
    count = batch.batch
    if batch.cu_seqlens_q is None and q.shape[0] != count:
        hint = "Without cu_seqlens_q every sequence has one query."
        raise InvalidArgumentError("q", f"total_q {q.shape[0]}", f"{count}, one for each sequence", hint)
    if isinstance(align, Tensor) and checks.has_rank(align, 1) and align.shape[0] != count:
        raise InvalidArgumentError("align", f"shape {tuple(align.shape)}", f"({count},)")
    if checks.has_rank(slopes, 2) and slopes is not None and slopes.shape[0] != count:
        raise InvalidArgumentError("alibi_slopes", f"shape {tuple(slopes.shape)}", f"({count}, nheads)")
    if checks.has_rank(tree_mask, 2) and tree_mask is not None:
        want = (q.shape[0], batch.max_seqlen_q)
        if tuple(tree_mask.shape) != want:
            raise InvalidArgumentError(
                "tree_mask", f"shape {tuple(tree_mask.shape)}", f"{want}, (total_q, max_seqlen_q)"
            )


def _offsets(align: object, batch: int, on_device: bool) -> list[int | None]:
    """`off` of each sequence; None is that of "bottom_right"."""
    if isinstance(align, Tensor):
        return align.tolist() if checks.readable(align, torch.int32, on_device=on_device) else [None] * batch
    if isinstance(align, int):
        return [align] * batch
    return [0 if align == "top_left" else None] * batch


def _check(
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
