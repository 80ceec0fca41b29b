"""Decode over pages against decode over a contiguous cache, what a step and a write cost."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from common import Row
from torch import Tensor

import xattn
from xattn.measure import alternate

NHEADS, NHEADS_K, HEADDIM, CONTEXT = 32, 8, 128, 2048
# (dtype, batch, block_size): at most so many times the contiguous cache.
BARS = {
    (torch.bfloat16, 4, 16): 1.4,
    (torch.bfloat16, 4, 64): 1.2,
    (torch.bfloat16, 4, 256): 1.15,
    (torch.float32, 4, 16): 1.3,
    (torch.float32, 4, 64): 1.15,
    (torch.float32, 4, 256): 1.0,
    (torch.bfloat16, 32, 16): 1.15,
}
STEP, WRITE, WRITE_SOME = 70.0, 60.0, 100.0


def rows(quick: bool) -> Iterator[Row]:
    seconds = 1.0 if quick else 5.0
    with torch.no_grad():
        for (dtype, batch, block_size), bar in BARS.items():
            timing = alternate(_candidates(dtype, batch, CONTEXT, block_size), seconds=seconds)
            ratio = timing.ratio("pages", "contiguous")
            measured = f"{ratio:.2f}x ({timing.p50('pages') / 1e3:.2f} ms after {timing.p50('contiguous') / 1e3:.2f})"
            what = f"paged decode, {str(dtype)[6:]}, batch {batch}, {CONTEXT:,} keys, pages of {block_size}"
            data = timing.as_dict("contiguous")
            yield Row("paged", what, f"<= {bar:.2f}x", measured, ratio, bar, timing.method, data)
        timing = alternate(_candidates(torch.bfloat16, 8, 64, 16), seconds=seconds)
        cost = timing.p50("pages") - timing.p50("contiguous")
        what = "paged decode, bfloat16, batch 8, 64 keys: on top of a contiguous cache"
        yield Row("paged", what, f"<= {STEP:.0f} us", f"{cost:.0f} us", cost, STEP, timing.method)
        timing = alternate(_writes(), seconds=seconds)
        for name, bar in (("all", WRITE), ("some -1", WRITE_SOME)):
            cost = timing.p50(name)
            what = f"write_kv, 32 tokens, bfloat16, slots: {name}"
            yield Row("paged", what, f"<= {bar:.0f} us", f"{cost:.0f} us", cost, bar, timing.method)


def _candidates(dtype: torch.dtype, batch: int, context: int, block_size: int) -> dict[str, partial[Tensor]]:
    torch.manual_seed(0)
    blocks = batch * context // block_size
    k_cache, v_cache = (torch.randn(blocks, block_size, NHEADS_K, HEADDIM).to(dtype) for _ in range(2))
    table = torch.randperm(blocks).view(batch, -1)
    q = torch.randn(batch, NHEADS, HEADDIM).to(dtype)
    k, v = (cache[table].flatten(1, 2).contiguous() for cache in (k_cache, v_cache))
    step = xattn.PagedBatch(table.int(), torch.full((batch,), context, dtype=torch.int32))
    return {
        "pages": partial(xattn.paged_attention, q, k_cache, v_cache, step, unseen_finite=True),
        "contiguous": partial(xattn.attention, q[:, None], k, v),
    }


def _writes() -> dict[str, partial[None]]:
    k, v = (torch.randn(32, NHEADS_K, HEADDIM).bfloat16() for _ in range(2))
    caches = [torch.zeros(512, 16, NHEADS_K, HEADDIM, dtype=torch.bfloat16) for _ in range(2)]
    slots = torch.randperm(512 * 16)[:32]
    some = slots.clone()
    some[::8] = -1
    return {name: partial(xattn.write_kv, k, v, *caches, at) for name, at in (("all", slots), ("some -1", some))}
