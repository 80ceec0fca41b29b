"""`paged_attention`: each sequence's keys through its table, then attention as the contract words it."""

from __future__ import annotations

import functools
from dataclasses import replace

import torch
from torch import Tensor

from xattn import AttentionOutput, PagedBatch, PagedKernel, PagedRequest
from xattn.plugin import Plan
from xattn.plugin.formats import FormattedCache
from xattn.plugin.quantised import as_bytes, dequantised, scale_at
from xattn.plugin.symbolic import holds, smaller
from xattn_reference import in_order
from xattn_reference.block import everything
from xattn_reference.packed import places
from xattn_reference.softmax import Scores, attend, wide, within

_everything = everything(PagedRequest, fallback=True)


class ReferencePaged(PagedKernel):
    capabilities = (replace(_everything, features=_everything.features - {"q_scale"}),)

    def plan(self, request: PagedRequest) -> Plan:
        return functools.partial(paged_attention, request)

    def kernel_name(self, request: PagedRequest) -> str:
        how = "sums in one order" if request.batch_invariant else "matmul"
        return f"PyTorch {how} and exp over the gathered keys"


def paged_attention(
    request: PagedRequest,
    q: Tensor,
    k_cache: Tensor | FormattedCache,
    v_cache: Tensor | FormattedCache,
    batch: PagedBatch,
    *,
    sinks: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    tree_mask: Tensor | None = None,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    align: int | Tensor | None = None,
) -> Tensor | AttentionOutput:
    """Shapes as in `xattn.paged_attention`. Computes in float32, or in float64 for float64 tensors. Nothing is read
    from the device: sizes are the bounds."""
    token, live = _tokens(batch, q.shape[0])  # (batch, max_seqlen_q)
    queries = batch.seqlens_q.unsqueeze(1)
    keys = batch.seqlens_k.long().unsqueeze(1)
    j = torch.arange(_keys(request, batch), device=q.device)  # (keys,)
    off = _offsets(request, queries, keys, align)  # (batch, 1)
    i = torch.arange(batch.max_seqlen_q, device=q.device)
    distance = (i + off).unsqueeze(2) - j  # (batch, max_seqlen_q, keys)
    visible = within(distance, request.band) & live.unsqueeze(2) & (j < keys).unsqueeze(1)
    if tree_mask is not None:
        visible = visible & _in_tree(tree_mask, token, j - off, queries)
    seen = visible.any(1)
    k, v = (
        _gathered(cache, scale, batch.block_table, j, seen)
        for cache, scale in ((_plain(k_cache), k_scale), (_plain(v_cache), v_scale))
    )
    added = []
    if alibi_slopes is not None:
        slopes = alibi_slopes.to(wide(q)).view(-1, request.nheads, 1, 1)
        added.append(-slopes * distance.unsqueeze(1).abs())
    ordered = request.batch_invariant
    how = Scores(request.softmax_scale, request.softcap, visible.unsqueeze(1), added, sinks, ordered)
    padded = _rows(q, token) if request.out_dtype is None else _rows(q, token).to(request.out_dtype)
    out, lse = (in_order.attend if ordered else attend)(padded, k, v, how)
    # A token of no sequence takes the row past the last: 0, and -inf without a sink.
    sequence, place = places(batch.starts_q, q.shape[0])
    padding = sequence == batch.batch
    at = torch.where(padding, batch.batch * batch.max_seqlen_q, sequence * batch.max_seqlen_q + place)
    out = _rows(out.flatten(0, 1), at)
    if not request.return_lse:
        return out
    return AttentionOutput(out, _rows(lse.transpose(1, 2).flatten(0, 1), at, -torch.inf).t())


def _tokens(batch: PagedBatch, total_q: int) -> tuple[Tensor, Tensor]:
    """The row of q of each query of each sequence, one past the last for those that it does not have, and which it
    has: (batch, max_seqlen_q) both."""
    i = torch.arange(batch.max_seqlen_q, device=batch.seqlens_k.device)
    live = i < batch.seqlens_q.unsqueeze(1)
    return torch.where(live, batch.starts_q[:-1].unsqueeze(1) + i, total_q), live


def _rows(x: Tensor, rows: Tensor, beyond: float = 0.0) -> Tensor:
    """Rows of x, of which there is one more, that holds `beyond`."""
    return torch.cat((x, x.new_full((1, *x.shape[1:]), beyond)))[rows]


def _keys(request: PagedRequest, batch: PagedBatch) -> int:
    """How many keys a sequence may have, by its bound and its table."""
    if holds(request.num_blocks == 0):
        return 0
    most: int = smaller(batch.max_seqlen_k, batch.block_table.shape[1] * request.block_size)
    return most


def _plain(cache: Tensor | FormattedCache) -> Tensor:
    """(num_blocks, block_size, nheads_k, columns)"""
    if not isinstance(cache, FormattedCache):
        return cache
    return cache.as_bytes().numbers().view(cache.dtype)


def _offsets(request: PagedRequest, queries: Tensor, keys: Tensor, align: int | Tensor | None) -> Tensor:
    """`off` of each sequence: (batch, 1)."""
    if isinstance(align, Tensor):
        return align.long().unsqueeze(1)
    if align is not None or request.align == "top_left":
        return torch.zeros_like(keys) + (align or 0)
    return keys - queries


def _gathered(cache: Tensor, scale: Tensor | None, block_table: Tensor, j: Tensor, seen: Tensor) -> Tensor:
    """(batch, keys, nheads_k, headdim), float32 of quantised ones. seen: (batch, keys). No page is loaded for a key
    that no query sees: its entry may be any number."""
    block_size = cache.shape[1]
    page = torch.where(seen, block_table.long()[:, j // block_size], 0)
    return taken(cache, scale, page, (j % block_size).expand_as(page))


def taken(cache: Tensor, scale: Tensor | None, page: Tensor, place: Tensor) -> Tensor:
    """What lies at these places of these pages: as `page`, (..., nheads_k, headdim) behind it, float32 of quantised
    ones."""
    if scale is None:
        return cache[page, place]
    return dequantised(as_bytes(cache)[page, place].view(cache.dtype), scale_at(scale, page, place))


def _in_tree(tree_mask: Tensor, token: Tensor, place: Tensor, queries: Tensor) -> Tensor:
    """Which keys a tree shows: (batch, max_seqlen_q, keys). place: (batch, keys), of a key among the new tokens, below
    0 for those before, which it shows all."""
    rows = _rows(tree_mask, token)
    at = place.clamp(0, max(tree_mask.shape[1] - 1, 0)).unsqueeze(1).expand(-1, token.shape[1], -1)
    new = rows.gather(2, at) & (place < queries).unsqueeze(1)
    return new | (place < 0).unsqueeze(1)
