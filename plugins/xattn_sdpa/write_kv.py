"""`write_kv` by the `sdpa` backend: rows by one indexed write each for keys and values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

from xattn import Capabilities, WriteKernel, WriteRequest
from xattn.plugin import Plan
from xattn.plugin.quantised import as_bytes, is_written, quantised, scale_at, scale_for
from xattn.plugin.symbolic import holds

_FEATURES: frozenset[Any] = frozenset({"headdim_v", "k_scale", "v_scale", "empty"})
_FLOATS = frozenset({torch.float64, torch.float32, torch.float16, torch.bfloat16})


class SdpaWrite(WriteKernel):
    capabilities = (
        Capabilities(
            device="cpu",
            dtypes=_FLOATS,
            features=_FEATURES,
            checked="run on CPU, torch 2.13",
        ),
        Capabilities(
            device="cuda",
            dtypes=_FLOATS,
            features=_FEATURES,
            checked="run on an NVIDIA H100, torch 2.11",
        ),
    )

    def plan(self, request: WriteRequest) -> Plan:
        return _write_on_cpu if request.device == "cpu" and not is_compiling() else _write

    def kernel_name(self, request: WriteRequest) -> str:
        return "torch's index_put_"


def _write_on_cpu(
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slots: Tensor,
    *,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
) -> None:
    if slots.shape[0] == 0:
        return
    if int(slots.min()) < 0:
        kept = (slots >= 0).nonzero().squeeze(1)
        slots, k, v = (x.index_select(0, kept) for x in (slots, k, v))
    for new, cache in (*_stored(k, k_cache, slots, k_scale), *_stored(v, v_cache, slots, v_scale)):
        _put(new, cache, slots)


def _write(
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slots: Tensor,
    *,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
) -> None:
    """Without a look at the slots: in a graph, and on a device whose stream would stop.

    A row of slot -1 writes what the first row with a slot does, once more; where there is none, slot 0 gets what it
    has.
    """
    if holds(slots.shape[0] == 0) or holds(k_cache.shape[0] == 0):
        return
    skipped = slots < 0
    first = (~skipped).to(torch.int8).argmax(0, keepdim=True)  # an index of no dimension would be read
    slots = torch.where(skipped, slots[first].clamp_min(0), slots)
    for x, x_cache, scale in ((k, k_cache, k_scale), (v, v_cache, v_scale)):
        for new, pool in _stored(x, x_cache, slots, scale):
            again = torch.where(skipped.all(), pool[0, 0], new[first])
            _put(torch.where(skipped.view((-1,) + (1,) * (new.dim() - 1)), again, new), pool, slots)


def _stored(new: Tensor, cache: Tensor, slots: Tensor, scale: Tensor | None) -> list[tuple[Tensor, Tensor]]:
    """New rows as a pool holds them, and the pool: the cache, as bytes where it is quantised, and scales of tokens."""
    if scale is None:
        return [(new, cache)]
    if is_written(scale):
        own = scale_for(new, cache.dtype, scale)
        rows = quantised(new, own.unsqueeze(-1), cache.dtype)
        return [(own, scale), (as_bytes(rows), as_bytes(cache))]
    block_size = cache.shape[1]
    rows = quantised(new, scale_at(scale, slots // block_size, slots % block_size), cache.dtype)
    return [(as_bytes(rows), as_bytes(cache))]


def _put(new: Tensor, pool: Tensor, slots: Tensor) -> None:
    """pool: (num_blocks, block_size, ...), of each place what a row of new is. slots: (tokens,), none below 0."""
    block_size = pool.shape[1]
    if pool.is_contiguous():
        # One row of all heads a token: a third of the time of the same with heads apart.
        pool.flatten(0, 1).flatten(1)[slots] = new.flatten(1)
    else:
        pool[slots // block_size, slots % block_size] = new
