"""`write_kv` in plain PyTorch, on any device."""

from __future__ import annotations

import torch
from torch import Tensor

from xattn import WriteKernel, WriteRequest
from xattn.plugin import Plan
from xattn.plugin.quantised import as_bytes, is_written, quantised, scale_at, scale_for
from xattn.plugin.symbolic import holds
from xattn_reference.block import everything


class ReferenceWrite(WriteKernel):
    capabilities = (everything(WriteRequest),)

    def plan(self, request: WriteRequest) -> Plan:
        return write_kv

    def kernel_name(self, request: WriteRequest) -> str:
        return "PyTorch indexing"


def write_kv(
    k: Tensor,
    v: Tensor | None,
    k_cache: Tensor,
    v_cache: Tensor | None,
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

    def put(new: Tensor, pool: Tensor) -> None:
        rows = (-1,) + (1,) * (new.dim() - 1)
        again = torch.where(skipped.all(), pool[0, 0], new[first])
        pool[block, place] = torch.where(skipped.view(rows), again, new)

    for new, cache, scale in ((k, k_cache, k_scale), (v, v_cache, v_scale)):
        if new is None or cache is None:
            continue
        if scale is None:
            put(new, cache)
        elif is_written(scale):
            own = scale_for(new, cache.dtype, scale)
            put(own, scale)
            put(as_bytes(quantised(new, own.unsqueeze(-1), cache.dtype)), as_bytes(cache))
        else:
            put(as_bytes(quantised(new, scale_at(scale, block, place), cache.dtype)), as_bytes(cache))
