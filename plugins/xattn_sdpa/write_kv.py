"""`write_kv` by the `sdpa` backend: rows by one indexed write each for keys and values."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

from xattn import Capabilities, WriteKernel, WriteRequest
from xattn.plugin import Plan
from xattn.plugin.quantised import as_bytes, is_written, quantised, scale_at, scale_for
from xattn.plugin.symbolic import holds

_FEATURES: frozenset[Any] = frozenset(WriteRequest.vocabulary.feature_names) - {"format"}
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
    v: Tensor | None,
    k_cache: Tensor,
    v_cache: Tensor | None,
    slots: Tensor,
    *,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
) -> None:
    if slots.shape[0] == 0:
        return
    if int(slots.min()) < 0:
        kept = (slots >= 0).nonzero().squeeze(1)
        slots, k = slots.index_select(0, kept), k.index_select(0, kept)
        v = v if v is None else v.index_select(0, kept)
    stored = _stored_together(k, v, k_cache, v_cache, k_scale, v_scale)
    if stored is None:
        stored = [*_stored(k, k_cache, slots, k_scale), *_stored(v, v_cache, slots, v_scale)]
    for new, pool in stored:
        _put(new, pool, slots)


def _stored_together(
    k: Tensor,
    v: Tensor | None,
    k_cache: Tensor,
    v_cache: Tensor | None,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
) -> list[tuple[Tensor, Tensor]] | None:
    """As `_stored` of keys and of values, made at once: calls are most of what few tokens cost. None where they are not
    made alike, by scales that are written."""
    if v is None or v_cache is None or k_scale is None or v_scale is None:
        return None
    if not is_written(k_scale) or k_scale.shape != v_scale.shape or k.shape != v.shape:
        return None
    both = torch.cat((k, v))
    own = scale_for(both, k_cache.dtype, k_scale)
    k_own, v_own = own.chunk(2)
    k_rows, v_rows = as_bytes(quantised(both, own.unsqueeze(-1), k_cache.dtype)).chunk(2)
    return [(k_own, k_scale), (k_rows, as_bytes(k_cache)), (v_own, v_scale), (v_rows, as_bytes(v_cache))]


def _write(
    k: Tensor,
    v: Tensor | None,
    k_cache: Tensor,
    v_cache: Tensor | None,
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


def _stored(
    new: Tensor | None, cache: Tensor | None, slots: Tensor, scale: Tensor | None
) -> list[tuple[Tensor, Tensor]]:
    """New rows as a pool holds them, and the pool: the cache, as bytes where it is quantised, and scales of tokens.
    None: the values of a latent cache, which has none."""
    if new is None or cache is None:
        return []
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
    blocks, block_size = pool.shape[:2]
    if not pool.is_contiguous():
        pool[slots // block_size, slots % block_size] = new
        return
    # One row of all heads a token: a third of the time of the same with heads apart.
    there, new = pool.view(blocks * block_size, math.prod(pool.shape[2:])), new.flatten(1)
    if pool.dtype == torch.uint8 and not is_compiling() and _in_eights(there) and _in_eights(new):
        there, new = there.view(torch.int64), new.view(torch.int64)  # it moves elements: a third of the time
    there[slots] = new


def _in_eights(x: Tensor) -> bool:
    """Whether rows of bytes can be read as integers of eight."""
    return x.stride(1) == 1 and all(each % 8 == 0 for each in (x.shape[1], x.stride(0), x.storage_offset()))
