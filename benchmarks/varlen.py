"""Packed sequences on the CPU, against torch's own attention of each."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import nothing
import torch
import torch.nn.functional as F
from alternating import median_difference
from common import Row

import xattn
from xattn.measure import alternate
from xattn.testing import fresh

NHEADS, HEADDIM = 8, 64
RAGGED = (17, 64, 129, 200, 255, 300, 333, 411)
# what, lengths, most times the sum of the calls
CASES = (("8 sequences, 1,709 tokens", RAGGED, 1.05), ("64 sequences of 8 tokens", (8,) * 64, 0.8))
ENTRY_US, HELD_US = 1.5, 0.2


def rows(quick: bool) -> Iterator[Row]:
    for dtype in (torch.float32, torch.bfloat16):
        for what, lengths, limit in CASES:
            yield _against_loop(what, lengths, limit, dtype, seconds=1.0 if quick else 6.0)
    yield from _overhead()


def _packed(lengths: tuple[int, ...], dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    q, k, v = (torch.randn(sum(lengths), NHEADS, HEADDIM, dtype=dtype) for _ in range(3))
    return q, k, v, torch.tensor([0, *lengths]).cumsum(0).int()


def _against_loop(what: str, lengths: tuple[int, ...], limit: float, dtype: torch.dtype, seconds: float) -> Row:
    q, k, v, cu_seqlens = _packed(lengths, dtype)
    views = [
        [x.transpose(0, 1)[None] for x in each] for each in zip(*(x.split(lengths) for x in (q, k, v)), strict=True)
    ]
    options: dict[str, Any] = {"max_seqlen_q": max(lengths), "max_seqlen_k": max(lengths), "causal": True}
    with torch.no_grad():
        timing = alternate(
            {
                "xattn": lambda: xattn.varlen_attention(q, k, v, cu_seqlens, **options),
                "SDPA": lambda: [F.scaled_dot_product_attention(*each, is_causal=True) for each in views],
            },
            seconds=seconds,
        )
    ratio = timing.ratio("xattn", "SDPA")
    name = str(dtype).removeprefix("torch.")
    measured = f"{ratio:.3f}x ({timing.p50('xattn') / 1e3:.2f} ms of {timing.p50('SDPA') / 1e3:.2f})"
    what = f"varlen, {what}, causal, {name}, against the SDPA calls on views cut before"
    return Row("varlen", what, f"<= {limit}x", measured, ratio, limit, timing.method, timing.as_dict("SDPA"))


def _overhead() -> Iterator[Row]:
    """Of a call and of a held plan, whose kernel does nothing, over that kernel."""
    q, k, v, cu_seqlens = _packed((213, 214) * 4, torch.float32)
    bounds = {"max_seqlen_q": 214, "max_seqlen_k": 214}
    with torch.no_grad(), fresh([*entry_points(group="xattn"), EntryPoint("nothing", "nothing", "xattn")]):
        held = xattn.plan(xattn.varlen_attention, q, k, v, cu_seqlens, causal=True, **bounds)

        def kernel() -> Any:
            return nothing.run(q, k, v, cu_seqlens, cu_seqlens, **bounds)

        def call() -> Any:
            return xattn.varlen_attention(q, k, v, cu_seqlens, causal=True, **bounds)

        def plan() -> Any:
            return held(q, k, v, cu_seqlens, cu_seqlens, **bounds)

        for what, run, limit in (("varlen_attention()", call, ENTRY_US), ("a held plan of it", plan, HELD_US)):
            extra = median_difference(run, kernel)
            name = f"{what}, 8 sequences, over the kernel's plan"
            method = "medians of rounds of 100 calls that take turns"
            yield Row("varlen", name, f"<= {limit} us", f"{extra:+.2f} us", extra, limit, method)
