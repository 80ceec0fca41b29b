"""Pages on the CPU: a step of one query each by `decode`, others sequence by sequence by the engine of `attention`."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from xattn import PagedBatch
from xattn.plugin.quantised import QMAX
from xattn.plugin.storage import Lists
from xattn_sdpa.attention import engine as dense
from xattn_sdpa.attention.engine import Settings
from xattn_sdpa.paged_attention import decode
from xattn_sdpa.paged_attention.store import Store


@dataclass(frozen=True)
class Options:
    """The optional tensors of a call. align: one off a sequence. k_scale, v_scale: of quantised caches."""

    sinks: Tensor | None = None
    alibi_slopes: Tensor | None = None
    tree_mask: Tensor | None = None
    align: Tensor | None = None
    k_scale: Tensor | None = None
    v_scale: Tensor | None = None

    def stores(self, k_cache: Tensor, v_cache: Tensor, dtype: torch.dtype) -> tuple[Store, Store]:
        """The pages of a call, whose keys a kernel gets in dtype: one store where values are keys, as of a latent
        cache."""
        keys = Store(k_cache, self.k_scale, dtype)
        one = v_cache is k_cache and self.v_scale is self.k_scale
        return keys, keys if one else Store(v_cache, self.v_scale, dtype)


def forward(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, batch: PagedBatch, options: Options, settings: Settings
) -> tuple[Tensor, Tensor]:
    """out (total_q, nheads, headdim_v), contiguous, and lse (nheads, total_q) in the dtype of the scores. settings: its
    offset is that of every sequence where there is no align."""
    lists = batch.lists()
    assert lists is not None
    # What is made other numbers is made those that the kernel computes with. Of the half types it makes copies, which
    # take long of float16.
    made = k_cache.dtype in QMAX or k_cache.dtype == torch.float16
    stores = options.stores(k_cache, v_cache, torch.float32 if made and q.dtype.itemsize == 2 else q.dtype)
    if (way := _way(q, *stores, batch, lists, options, settings)) is not None:
        out, lse = decode.forward(q.to(stores[0].dtype), *stores, way, settings.scale)
        out, lse = out.to(q.dtype), lse.t()
    else:
        stores = options.stores(k_cache, v_cache, q.dtype)
        out, lse = _one_by_one(q, *stores, lists, options, settings)
    if options.sinks is not None:
        out, lse = _with_sinks(out, lse, options.sinks, lists.starts_q[-1])
    return out.contiguous(), lse


def _way(
    q: Tensor,
    keys: Store,
    values: Store,
    batch: PagedBatch,
    lists: Lists,
    options: Options,
    settings: Settings,
) -> decode.Way | None:
    """How `decode` serves the step, None where it does not: every token is a sequence's only query, and sees all of its
    keys, of which there is one at least."""
    beyond = (options.alibi_slopes, options.tree_mask, settings.softcap, settings.left)
    if any(each is not None for each in beyond) or settings.scale <= 0:
        return None
    if keys.headdim != values.headdim or len(q) != len(lists.seqlens_k) or len(q) == 0:
        return None
    sees_all = settings.right is None or (settings.right >= 0 and settings.offset is None and options.align is None)

    def make() -> decode.Way | None:
        if not sees_all or min(lists.seqlens_k) == 0 or lists.starts_q != list(range(len(q) + 1)):
            return None
        return decode.way(lists, keys)

    return batch.derived(("sdpa decode", keys.cache.shape, keys.cache.dtype, q.dtype, sees_all), make)


def _one_by_one(
    q: Tensor, keys: Store, values: Store, lists: Lists, options: Options, settings: Settings
) -> tuple[Tensor, Tensor]:
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    out = q.new_zeros(len(q), q.shape[1], values.headdim)
    lse = q.new_full((q.shape[1], len(q)), -torch.inf, dtype=wide)
    aligns = None if options.align is None else options.align.tolist()
    for b, length in enumerate(lists.seqlens_k):
        start, stop = lists.starts_q[b], lists.starts_q[b + 1]
        own = settings.offset if aligns is None else aligns[b]
        offset = length - (stop - start) if own is None else own
        first, end = lists.seen(b, settings.left, settings.right, offset)
        if first == end:
            continue
        k = _gathered(keys, lists, b, first, end)
        v = k if values is keys else _gathered(values, lists, b, first, end)
        slopes = options.alibi_slopes
        if slopes is not None and slopes.dim() == 2:
            slopes = slopes[b]
        mask = None
        if options.tree_mask is not None:
            mask = _tree(options.tree_mask[start:stop], first, end, offset)
        tensors = (q[None, start:stop], k[None], v[None], None, slopes, None, mask)
        found, found_lse = dense.forward(tensors, None, replace(settings, offset=offset - first))
        out[start:stop], lse[:, start:stop] = found[0], found_lse[0]
    return out, lse


def _gathered(store: Store, lists: Lists, b: int, first: int, end: int) -> Tensor:
    """(end - first, nheads_k, headdim): keys or values of a sequence."""
    assert lists.block_table is not None
    block_size = store.block_size
    skipped = first // block_size
    pages = torch.tensor(lists.block_table[b][skipped : -(-end // block_size)])
    found = store.take(pages).flatten(0, 1)
    return found[first - skipped * block_size : end - skipped * block_size]


def _tree(tree_mask: Tensor, first: int, end: int, offset: int) -> Tensor:
    """(1, 1, queries, end - first): the keys before the new ones, and of those what the tree shows."""
    queries = len(tree_mask)
    place = torch.arange(first - offset, end - offset)  # among the new tokens
    new = tree_mask[:, place.clamp(0, max(queries - 1, 0))] & (place < queries)
    return (new | (place < 0))[None, None]


def _with_sinks(out: Tensor, lse: Tensor, sinks: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
    """The sinks joined to what the keys came to; a token of no sequence has none."""
    rows = sinks.to(lse.dtype).unsqueeze(1)
    # Not exp(lse - logaddexp(lse, sink)): beside a large lse both are rounded to more than the weight needs.
    weight = torch.sigmoid(lse - rows).masked_fill_(lse == -torch.inf, 0.0)
    out = (out * weight.t().unsqueeze(-1)).to(out.dtype)
    joined = torch.logaddexp(lse, rows)
    joined[:, tokens:] = -torch.inf
    return out, joined
