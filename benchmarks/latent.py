"""Latent decode by `sdpa` over pages, against the two matrix products and the softmax that a user writes by hand."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from common import Row
from torch import Tensor

import xattn
from xattn.dispatch import plans
from xattn.measure import alternate
from xattn.ops.mla_attention import call

NHEADS, RANK, ROPE, CONTEXT, BLOCK = 16, 512, 64, 4096, 64
SCALE = (128 + 64) ** -0.5
DECODE, ENTRY_US, PLAN_US = 1.0, 1.5, 0.2


def rows(quick: bool) -> Iterator[Row]:
    seconds = 1.0 if quick else 5.0
    torch.manual_seed(0)
    pages = CONTEXT // BLOCK
    q = torch.randn(1, NHEADS, RANK + ROPE).bfloat16()
    cache = torch.randn(pages, BLOCK, 1, RANK + ROPE).bfloat16()
    tables = {"in order": torch.arange(pages), "in no order": torch.randperm(pages)}
    calls = {}
    for name, table in tables.items():
        step = xattn.PagedBatch(table.view(1, -1).int(), torch.tensor([CONTEXT], dtype=torch.int32))
        calls[name] = partial(xattn.mla_attention, q, cache, step, scale=SCALE, kv_lora_rank=RANK, backend="sdpa")
    latents = cache.view(1, CONTEXT, RANK + ROPE)
    by_hand = {
        "in order, by hand": lambda: _by_hand(q, latents),
        "in no order, by hand": lambda: _by_hand(q, cache[tables["in no order"]].view(1, CONTEXT, RANK + ROPE)),
    }
    with torch.no_grad():
        timing = alternate({**calls, **by_hand}, seconds=seconds)
        for name in tables:
            other = f"{name}, by hand"
            ratio = timing.ratio(name, other)
            measured = f"{ratio:.2f}x ({timing.p50(name) / 1e3:.2f} ms after {timing.p50(other) / 1e3:.2f})"
            what = f"latent decode, bfloat16, {NHEADS} heads, {CONTEXT:,} latents in pages {name}, over that by hand"
            data = timing.as_dict(other)
            yield Row("latent", what, f"<= {DECODE:.1f}x", measured, ratio, DECODE, timing.method, data)
        yield from _overhead(q, cache, seconds)


def _by_hand(q: Tensor, latents: Tensor) -> Tensor:
    """q: (batch, nheads, width), latents: (batch, keys, width). The scores are rounded to bfloat16 here."""
    scores = (q @ latents.mT).float() * SCALE
    return scores.softmax(-1).to(q.dtype) @ latents[..., :RANK]


def _overhead(q: Tensor, cache: Tensor, seconds: float) -> Iterator[Row]:
    """What xattn adds to a kernel that costs nothing."""
    step = xattn.PagedBatch(torch.arange(4, dtype=torch.int32).view(1, 4), torch.tensor([200], dtype=torch.int32))
    plans.clear()
    out = xattn.mla_attention(q, cache, step, scale=SCALE, kv_lora_rank=RANK)
    held = xattn.plan(xattn.mla_attention, q, cache, step, scale=SCALE, kv_lora_rank=RANK)
    held(q, cache, step)

    def nothing(q: Tensor, cache: Tensor, step: xattn.PagedBatch) -> Tensor:
        return out

    ((slot, (check, _, planned)),) = call._recent.items()
    call._recent[slot] = check, nothing, planned
    step.passed.add((nothing, len(q)))
    (inside,) = (each for each in held.__closure__ or () if hasattr(each.cell_contents, "run"))  # type: ignore[attr-defined]
    inside.cell_contents.run = nothing
    timing = alternate(
        {
            "nothing": lambda: nothing(q, cache, step),
            "entry": lambda: xattn.mla_attention(q, cache, step, scale=SCALE, kv_lora_rank=RANK),
            "plan": lambda: held(q, cache, step),
        },
        seconds=seconds,
    )
    plans.clear()
    for name, what, limit in (("entry", "mla_attention()", ENTRY_US), ("plan", "a held plan of it", PLAN_US)):
        extra = timing.difference(name, "nothing")
        what = f"{what}, of a batch that was looked at, over a kernel that does nothing"
        yield Row("latent", what, f"<= {limit} us", f"{extra:+.2f} us", extra, limit, timing.method)
