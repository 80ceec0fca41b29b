"""Decode over quantised pages against decode over bfloat16 ones, and what a quantising write costs."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from common import Row

import xattn
from xattn.cache import PagedKVCache
from xattn.measure import alternate

NHEADS, NHEADS_K, HEADDIM, CONTEXT, BATCH, BLOCK = 32, 8, 128, 2048, 4, 16
STORAGES = {"int8": (torch.int8, 1.5), "e4m3": (torch.float8_e4m3fn, 3.5), "int4": (torch.uint8, 4.0)}
WRITE = 150.0


def rows(quick: bool) -> Iterator[Row]:
    torch.manual_seed(0)
    seconds = 1.0 if quick else 5.0
    blocks = BATCH * CONTEXT // BLOCK
    step = xattn.PagedBatch(
        torch.randperm(blocks).view(BATCH, -1).int(), torch.full((BATCH,), CONTEXT, dtype=torch.int32)
    )
    q = torch.randn(BATCH, NHEADS, HEADDIM).bfloat16()
    k, v = (torch.randn(blocks * BLOCK, NHEADS_K, HEADDIM).bfloat16() for _ in range(2))
    new = k[:32].clone(), v[:32].clone()
    slots = torch.randperm(blocks * BLOCK)[:32]
    everywhere = torch.arange(blocks * BLOCK)
    reads, writes = {}, {}
    with torch.no_grad():
        for name, dtype in (("bfloat16", torch.bfloat16), *((name, each[0]) for name, each in STORAGES.items())):
            cache = PagedKVCache(blocks, BLOCK, NHEADS_K, HEADDIM, dtype=dtype)
            cache.write(0, k, v, everywhere)
            scales = cache.scales(0)
            if scales:
                writes[name] = partial(xattn.write_kv, *new, cache.k[0], cache.v[0], slots, **scales)
            reads[name] = partial(xattn.paged_attention, q, cache.k[0], cache.v[0], step, **scales)
        timing = alternate(reads, seconds=seconds)
        for name, (_, bar) in STORAGES.items():
            ratio = timing.ratio(name, "bfloat16")
            measured = f"{ratio:.2f}x ({timing.p50(name) / 1e3:.2f} ms after {timing.p50('bfloat16') / 1e3:.2f})"
            what = f"paged decode over {name}, a scale a head of a token, over bfloat16 pages"
            yield Row(
                "quantised", what, f"<= {bar:.1f}x", measured, ratio, bar, timing.method, timing.as_dict("bfloat16")
            )
        timing = alternate(writes, seconds=seconds)
        for name in STORAGES:
            cost = timing.p50(name)
            what = f"write_kv, 32 tokens, {name}"
            yield Row("quantised", what, f"<= {WRITE:.0f} us", f"{cost:.0f} us", cost, WRITE, timing.method)
