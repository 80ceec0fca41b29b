"""`write_kv` in plain PyTorch, on any device."""

from __future__ import annotations

import torch
from torch import Tensor

from xattn import WriteKernel, WriteRequest
from xattn.plugin import Plan
from xattn.plugin.formats import FormattedCache
from xattn.plugin.quantised import as_bytes, is_written, quantised, scale_at, scale_for
from xattn.plugin.symbolic import holds
from xattn_reference.block import everything

# Where rows are written: a cache, or scales, by blocks and places.
Pool = Tensor | FormattedCache


class ReferenceWrite(WriteKernel):
    capabilities = (everything(WriteRequest),)

    def plan(self, request: WriteRequest) -> Plan:
        return write_kv

    def kernel_name(self, request: WriteRequest) -> str:
        return "PyTorch indexing"


def write_kv(
    k: Tensor,
    v: Tensor | None,
    k_cache: Pool,
    v_cache: Pool | None,
    slots: Tensor,
    *,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
) -> None:
    """Shapes as in `xattn.write_kv`. No shape in here depends on the slots, so a graph can hold it: a row of slot -1
    writes what the first row with a slot does, once more, and where there is none, slot 0 gets what it has."""
    if holds(slots.shape[0] == 0) or holds(k_cache.shape[0] == 0):
        return
    block_size = k_cache.shape[1]
    skipped = slots < 0
    first = (~skipped).to(torch.int8).argmax(0, keepdim=True)  # an index of no dimension would be read
    target = torch.where(skipped, slots[first].clamp_min(0), slots)
    block, place = target // block_size, target % block_size
    origin = torch.zeros_like(block[:1])

    def put(new: Tensor, pool: Pool) -> None:
        rows = (-1,) + (1,) * (new.dim() - 1)
        there = pool.taken(origin, origin)[0] if isinstance(pool, FormattedCache) else pool[0, 0]
        again = torch.where(skipped.all(), there, new[first])
        new = torch.where(skipped.view(rows), again, new)
        if isinstance(pool, FormattedCache):
            pool.put(block, place, new)
        else:
            pool[block, place] = new

    for new, cache, scale in ((k, k_cache, k_scale), (v, v_cache, v_scale)):
        if new is None or cache is None:
            continue
        if scale is None:
            put(new, cache)
            continue
        if is_written(scale):
            own = scale_for(new, cache.dtype, scale)
            put(own, scale)
            own = own.unsqueeze(-1)
        else:
            own = scale_at(scale, block, place)
        stored = cache.as_bytes() if isinstance(cache, FormattedCache) else as_bytes(cache)
        put(as_bytes(quantised(new, own, cache.dtype)), stored)
